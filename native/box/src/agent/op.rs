//! One operation: a command from its request to the moment the edge has its result in the log.

use super::{processes, terminal};
use crate::exec;
use crate::map;
use crate::msgpack::Value;
use crate::spawner::Spawner;
use crate::sys::*;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const CHUNK: usize = 256 << 10;
/// How long a finished command's pipes are read for what its background children may still write.
const DRAIN: Duration = Duration::from_millis(100);
const KILL_EVERY: Duration = Duration::from_millis(3);
const TIMEOUT_CODE: i32 = 124;
const END_OF_TRANSMISSION: u8 = 4;
/// A connection that the edge does not read from is not read from either.
const MAX_UNSENT: usize = 1 << 20;
const DEFAULT_MAX_OUTPUT: i64 = 10 << 20;

#[derive(Default)]
struct Output {
    pipe: Option<OwnedFd>,
    data: Vec<u8>,
    sent: usize,
    dropped: u64,
}

#[derive(PartialEq)]
enum Ending {
    None,
    /// The command ended with this code.
    Exit(i32),
    /// Nothing could be started: an infrastructure failure, not a result.
    NotStarted(String),
}

pub struct Op {
    id: i64,
    outputs: [Output; 2],
    stdin: Option<OwnedFd>,
    input: Vec<u8>,
    input_ends: bool,
    status: Option<OwnedFd>,
    status_bytes: Vec<u8>,
    /// What the status pipe has told so far: see `exec`.
    told: [Option<i32>; 3],
    started: Instant,
    deadline: Option<Instant>,
    drain_until: Option<Instant>,
    timed_out: bool,
    cancelled: bool,
    tampered: bool,
    /// The spawner that was to start it.
    starter: i32,
    ending: Ending,
    duration: Option<Duration>,
    max_output: usize,
    live: bool,
    is_terminal: bool,
    /// Bytes are passed on and not kept: a connection to a port, not a command.
    is_connection: bool,
    attached: bool,
    exit_sent: bool,
}

impl Op {
    pub fn start(id: i64, request: &Value, spawner: &Spawner) -> Op {
        let mut op = Op::new(id, request);
        op.starter = spawner.pid;
        if let Err(fail) = op.launch(request, spawner) {
            op.ending = Ending::NotStarted(fail.text());
        }
        op
    }

    fn new(id: i64, request: &Value) -> Op {
        let started = Instant::now();
        let timeout = request.get("timeout_ms").int();
        Op {
            id,
            outputs: Default::default(),
            stdin: None,
            input: request.get("stdin").bytes().unwrap_or_default().to_vec(),
            input_ends: !request.get("stdin_open").bool(),
            status: None,
            status_bytes: Vec::new(),
            told: [None; 3],
            started,
            deadline: timeout.map(|ms| started + Duration::from_millis(ms.max(0) as u64)),
            drain_until: None,
            timed_out: false,
            cancelled: false,
            tampered: false,
            starter: 0,
            ending: Ending::None,
            duration: None,
            max_output: request.get("max_output").int().unwrap_or(DEFAULT_MAX_OUTPUT).max(0) as usize,
            live: request.get("live").bool(),
            is_terminal: false,
            is_connection: false,
            attached: false,
            exit_sent: false,
        }
    }

    /// Connects to a port of the box; its output are the bytes received, its input those to send.
    pub fn connect(id: i64, request: &Value) -> Op {
        let mut op = Op::new(id, request);
        (op.live, op.is_connection, op.input_ends) = (true, true, false);
        let port = request.get("port").int().unwrap_or(0) as u16;
        match connect_loopback(port).and_then(|fd| Ok((fd.try_clone().named("dup socket")?, fd))) {
            Ok((reader, writer)) => {
                op.outputs[0].pipe = Some(reader);
                op.stdin = Some(writer);
            }
            Err(fail) => op.ending = Ending::NotStarted(fail.text()),
        }
        op
    }

    /// A connection that a program of the box began.
    pub fn accepted(id: i64, stream: OwnedFd) -> Res<Op> {
        let mut op = Op::new(id, &Value::Nil);
        (op.live, op.is_connection, op.input_ends) = (true, true, false);
        set_nonblocking(stream.as_raw_fd());
        op.outputs[0].pipe = Some(stream.try_clone().named("dup socket")?);
        op.stdin = Some(stream);
        Ok(op)
    }

    /// Starts the helper: a long-lived command whose standard input is one end of a socket over which
    /// it takes commands, just as the spawner does. Returns our end.
    pub fn start_helper(id: i64, request: &Value, spawner: &Spawner) -> Res<(Op, OwnedFd)> {
        let (ours, theirs) = stream_pair()?;
        let mut op = Op::new(id, request);
        op.starter = spawner.pid;
        op.launch_with_input(request, spawner, theirs)?;
        Ok((op, ours))
    }

    fn launch(&mut self, request: &Value, spawner: &Spawner) -> Res<()> {
        if request.get("tty").bool() {
            return self.launch_on_terminal(request, spawner);
        }
        let wants_input = !self.input.is_empty() || !self.input_ends;
        if !wants_input {
            let null = fs::File::open("/dev/null").named("open /dev/null")?;
            return self.launch_with_input(request, spawner, OwnedFd::from(null));
        }
        let (stdin_r, stdin_w) = pipe()?;
        set_nonblocking(stdin_w.as_raw_fd());
        self.stdin = Some(stdin_w);
        self.launch_with_input(request, spawner, stdin_r)
    }

    fn launch_on_terminal(&mut self, request: &Value, spawner: &Spawner) -> Res<()> {
        let (master, slave) = terminal::open(request)?;
        let (status_r, status_w) = pipe()?;
        let slave_fd = slave.as_raw_fd();
        spawner.start_command(request, [slave_fd, slave_fd, slave_fd, status_w.as_raw_fd()])?;
        set_nonblocking(status_r.as_raw_fd());
        set_nonblocking(master.as_raw_fd());
        self.stdin = Some(master.try_clone().named("dup terminal")?);
        self.outputs[0].pipe = Some(master);
        self.status = Some(status_r);
        self.is_terminal = true;
        self.input_ends = false;
        Ok(())
    }

    /// Tells a command on a terminal how large its window is.
    pub fn resize(&self, request: &Value) {
        if let (true, Some(master)) = (self.is_terminal, &self.stdin) {
            terminal::resize(master, request);
        }
    }

    fn launch_with_input(&mut self, request: &Value, spawner: &Spawner, stdin: OwnedFd) -> Res<()> {
        let (out_r, out_w) = pipe()?;
        let (err_r, err_w) = pipe()?;
        let (status_r, status_w) = pipe()?;
        let fds = [stdin.as_raw_fd(), out_w.as_raw_fd(), err_w.as_raw_fd(), status_w.as_raw_fd()];
        let job = request.entries().iter().filter(|(key, _)| key != "stdin").cloned().collect();
        spawner.start_command(&Value::Map(job), fds)?;
        for fd in [&out_r, &err_r, &status_r] {
            set_nonblocking(fd.as_raw_fd());
        }
        self.outputs[0].pipe = Some(out_r);
        self.outputs[1].pipe = Some(err_r);
        self.status = Some(status_r);
        Ok(())
    }

    pub fn state(&self) -> &'static str {
        if self.is_running() { "running" } else { "done" }
    }

    pub fn is_connection(&self) -> bool {
        self.is_connection
    }

    pub fn is_running(&self) -> bool {
        self.duration.is_none()
    }

    /// The supervisor's process id, while it has one to look after.
    pub fn supervisor(&self) -> Option<i32> {
        self.status.as_ref().and(self.told(exec::SUPERVISOR))
    }

    fn told(&self, what: i32) -> Option<i32> {
        self.told[what as usize]
    }

    pub fn watched(&self) -> Vec<PollFd> {
        let entry = |fd: &OwnedFd, events: i16| PollFd { fd: fd.as_raw_fd(), events, revents: 0 };
        let has_room = |out: &&Output| !self.is_connection || out.data.len() < MAX_UNSENT;
        let readable = self.outputs.iter().filter(has_room).filter_map(|out| out.pipe.as_ref());
        let mut fds: Vec<PollFd> = readable.map(|fd| entry(fd, POLLIN)).collect();
        fds.extend(self.status.iter().map(|fd| entry(fd, POLLIN)));
        if !self.input.is_empty() {
            fds.extend(self.stdin.iter().map(|fd| entry(fd, POLLOUT)));
        }
        fds
    }

    pub fn next_event(&self, now: Instant) -> Option<Instant> {
        if self.duration.is_some() {
            return None;
        }
        if self.timed_out || self.cancelled {
            return Some(now + KILL_EVERY);
        }
        self.deadline.into_iter().chain(self.drain_until).min()
    }

    /// Gives back the time in which the command stood still.
    pub fn delay(&mut self, by: Duration) {
        self.deadline = self.deadline.map(|at| at + by);
        self.drain_until = self.drain_until.map(|at| at + by);
    }

    /// Moves bytes between the pipes and the buffers.
    pub fn advance(&mut self, ready: &impl Fn(i32) -> bool) {
        let is_ready = |fd: &Option<OwnedFd>| fd.as_ref().is_some_and(|fd| ready(fd.as_raw_fd()));
        for out in &mut self.outputs {
            if is_ready(&out.pipe) {
                out.read(self.max_output);
            }
        }
        if is_ready(&self.status) {
            self.read_status();
        }
        self.write_input();
    }

    fn read_status(&mut self) {
        let Some(fd) = &self.status else { return };
        if let Ok(Some(0)) | Err(_) = read_onto(fd.as_raw_fd(), &mut self.status_bytes, 64) {
            self.status = None;
        }
        let number = |at: &[u8]| i32::from_le_bytes([at[0], at[1], at[2], at[3]]);
        let whole = self.status_bytes.len() / 8 * 8;
        for pair in self.status_bytes.drain(..whole).as_slice().chunks_exact(8) {
            if let Some(place) = self.told.get_mut(number(pair) as usize) {
                *place = Some(number(&pair[4..]));
            }
        }
    }

    fn write_input(&mut self) {
        let Some(fd) = &self.stdin else { return };
        if self.input.is_empty() && !self.input_ends {
            return;
        }
        match write_some(fd.as_raw_fd(), &self.input) {
            Ok(put) => drop(self.input.drain(..put)),
            Err(_) => self.stdin = None, // the command does not read its input
        }
        if self.input.is_empty() && self.input_ends {
            if let (true, Some(fd)) = (self.is_connection, &self.stdin) {
                unsafe { shutdown(fd.as_raw_fd(), SHUT_WR) };
            }
            self.stdin = None;
        }
    }

    pub fn feed(&mut self, data: &[u8], eof: bool) {
        self.input.extend_from_slice(data);
        if eof && self.is_terminal {
            self.input.push(END_OF_TRANSMISSION); // closing a terminal's master would hang it up
        }
        self.input_ends |= eof && !self.is_terminal;
        self.write_input();
    }

    /// Signals the command's process group.
    pub fn signal(&self, number: i32) {
        if let (Some(pid), Ending::None) = (self.told(exec::COMMAND), &self.ending) {
            send_signal(-pid, number);
        }
    }

    /// Kills the command's whole tree; closes a connection.
    pub fn cancel(&mut self) {
        if self.is_connection {
            self.outputs[0].pipe = None;
            return;
        }
        self.cancelled = self.duration.is_none();
    }

    /// Who was to start it, if its time is over before anything took it up: that one is stopped or stuck.
    pub fn stuck_at(&self) -> Option<i32> {
        let is_stuck = self.timed_out && self.status.is_some() && self.told(exec::SUPERVISOR).is_none();
        is_stuck.then_some(self.starter)
    }

    pub fn take_lost_supervisor(&mut self) -> Option<i32> {
        std::mem::take(&mut self.tampered).then(|| self.told(exec::SUPERVISOR)).flatten()
    }

    /// Decides whether the command has ended; returns pipes that background children still hold.
    pub fn settle(&mut self, now: Instant) -> Vec<OwnedFd> {
        if self.duration.is_some() {
            return Vec::new();
        }
        if self.ending == Ending::None {
            self.notice_end(now);
        }
        if self.timed_out || self.cancelled {
            self.kill_tree();
        }
        let pipes_closed = self.outputs.iter().all(|out| out.pipe.is_none());
        let drained = pipes_closed || self.drain_until.is_some_and(|until| now >= until);
        let killing = (self.timed_out || self.cancelled) && self.status.is_some();
        if self.ending == Ending::None || !drained || killing {
            return Vec::new();
        }
        self.duration = Some(self.started.elapsed());
        self.stdin = None;
        // A supervisor with background children stays; it has nothing more to tell.
        self.status = None;
        self.outputs.iter_mut().filter_map(|out| out.pipe.take()).collect()
    }

    fn notice_end(&mut self, now: Instant) {
        if self.is_connection {
            if self.outputs[0].pipe.is_none() {
                self.ending = Ending::Exit(0);
            }
            return;
        }
        if let Some(status) = self.told(exec::STATUS) {
            self.ending = Ending::Exit(exit_code(status));
        } else if self.status.is_none() {
            let has_begun = self.told(exec::SUPERVISOR).is_some();
            self.tampered = !self.timed_out && has_begun;
            self.ending = match !has_begun {
                true => Ending::NotStarted("no process could be started: the box is at its pids or memory limit".into()),
                false => Ending::Exit(128 + SIGKILL), // its supervisor was killed
            };
        } else if !self.timed_out && self.deadline.is_some_and(|at| now >= at) {
            self.timed_out = true;
        }
        if self.ending != Ending::None {
            self.drain_until = Some(now + DRAIN);
        }
    }

    pub fn kill_tree(&mut self) {
        if let (Some(supervisor), true) = (self.told(exec::SUPERVISOR), self.status.is_some()) {
            processes::kill_descendants(supervisor);
        }
    }

    pub fn attach(&mut self) {
        self.detach();
        self.attached = true;
    }

    /// Forgets what was sent: a new edge gets the whole result again.
    pub fn detach(&mut self) {
        self.attached = false;
        self.exit_sent = false;
        self.outputs.iter_mut().for_each(|out| out.sent = 0);
    }

    /// The next frame for the edge: output first (at once when live, else when done), then the end.
    pub fn next_frame(&mut self) -> Option<Value> {
        let done = self.duration.is_some();
        if !self.attached || self.exit_sent || !(self.live || done) {
            return None;
        }
        for (index, out) in self.outputs.iter_mut().enumerate() {
            if let Some(chunk) = out.next_chunk() {
                if self.is_connection {
                    out.forget_sent();
                }
                return Some(map! { "t" => "out", "op" => self.id, "fd" => index as i64 + 1, "data" => chunk });
            }
        }
        self.exit_sent = done;
        done.then(|| self.exit_frame())
    }

    fn exit_frame(&self) -> Value {
        let truncated = self.outputs.iter().any(|out| out.dropped > 0);
        let duration = self.duration.unwrap_or_default().as_micros() as i64;
        let (code, error) = match &self.ending {
            Ending::NotStarted(text) => (-1, Value::from(text.as_str())),
            _ if self.timed_out => (TIMEOUT_CODE, Value::Nil),
            Ending::Exit(code) => (*code, Value::Nil),
            Ending::None => (-1, Value::Nil),
        };
        map! {
            "t" => "exit", "op" => self.id, "code" => code, "error" => error, "timed_out" => self.timed_out,
            "truncated" => truncated, "duration_us" => duration,
        }
    }
}

impl Output {
    fn read(&mut self, max: usize) {
        let mut most = SHORT_READ;
        for _ in 0..16 {
            let Some(fd) = &self.pipe else { return };
            match read_onto(fd.as_raw_fd(), &mut self.data, most) {
                Ok(Some(0)) | Err(_) => self.pipe = None,
                Ok(Some(got)) => {
                    self.dropped += self.data.len().saturating_sub(max) as u64;
                    self.data.truncate(max);
                    most = if got == most { LONG_READ } else { SHORT_READ };
                }
                Ok(None) => return,
            }
        }
    }

    fn forget_sent(&mut self) {
        self.data.drain(..self.sent);
        self.sent = 0;
    }

    fn next_chunk(&mut self) -> Option<Vec<u8>> {
        let rest = &self.data[self.sent..];
        let chunk = rest[..rest.len().min(CHUNK)].to_vec();
        self.sent += chunk.len();
        (!chunk.is_empty()).then_some(chunk)
    }
}

fn exit_code(status: i32) -> i32 {
    match status & 0x7f {
        0 => (status >> 8) & 0xff,
        signal => 128 + signal,
    }
}
