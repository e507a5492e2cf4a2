//! Process 1 of a box: runs commands for the edge, keeps their results until the edge has logged them,
//! reaps whatever the box leaves behind.
//!
//! One thread, one poll loop. The journal of results lives in this process, so it is out of the box's
//! reach and exactly as old as the box: an operation that it does not know has never started.

mod op;
mod processes;
mod terminal;

use crate::conn::Conn;
use crate::files;
use crate::frame::PROTOCOL;
use crate::map;
use crate::msgpack::Value;
use crate::spawner::Spawner;
use crate::sys::*;
use op::Op;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Unsent output beyond this waits in its operation instead of in the connection.
const MAX_BACKLOG: usize = 1 << 20;

/// The helper's place among the operations; log records count up from zero.
const HELPER: i64 = -2;
/// Where a spawner's number stands: process 1 does not know which process of its tree the helper is.
const HELPER_PID: i32 = 0;

/// Connections that programs of the box begin count from here; those that the edge begins stay below.
const FIRST_ACCEPTED: i64 = 1 << 50;

/// More connections to the proxy than this wait in the kernel.
const MAX_ACCEPTED: usize = 256;

/// How long a new box waits for the edge that ordered it.
const UNCLAIMED_TTL: Duration = Duration::from_secs(30);

struct Agent {
    listener: OwnedFd,
    children: OwnedFd,
    conn: Option<Conn>,
    spawner: Spawner,
    procs: Vec<File>,
    /// A second spawner that the edge brought along, and how to start it again.
    helper: Option<(Spawner, Value)>,
    ops: BTreeMap<i64, Op>,
    /// Output pipes that background children still hold: read and thrown away, so that nobody blocks.
    leftovers: Vec<OwnedFd>,
    orphan_ttl: Duration,
    alone_since: Instant,
    /// Whether somebody owns the box. Until then it ends with its first connection.
    is_claimed: bool,
    /// The port of the box's loopback where its programs reach the edge's proxy.
    proxy: Option<TcpListener>,
    accepted: i64,
    /// Since when the commands stand still: their clocks do, too.
    paused_at: Option<Instant>,
    /// Whom the edge's pause has stopped, where no freezer does that.
    halted: Option<HashSet<i32>>,
    /// While the edge reads what the box has written: whom that stopped.
    still: Option<HashSet<i32>>,
    /// Supervisors that somebody killed, until nothing of theirs is left.
    lost_supervisors: Vec<i32>,
}

pub fn run(listener: OwnedFd, spawner: Spawner, procs: Vec<File>) -> ! {
    unsafe { signal(SIGPIPE, SIG_IGN) };
    set_nonblocking(listener.as_raw_fd());
    let Ok(children) = child_events() else { std::process::exit(1) };
    let mut agent = Agent {
        listener,
        children,
        conn: None,
        spawner,
        procs,
        helper: None,
        ops: BTreeMap::new(),
        leftovers: Vec::new(),
        orphan_ttl: UNCLAIMED_TTL,
        alone_since: Instant::now(),
        is_claimed: false,
        proxy: None,
        accepted: 0,
        paused_at: None,
        halted: None,
        still: None,
        lost_supervisors: Vec::new(),
    };
    while agent.turn().is_ok() {}
    std::process::exit(1)
}

impl Agent {
    fn turn(&mut self) -> Res<()> {
        let mut fds = self.watched();
        wait(&mut fds, self.timeout_ms())?;
        let ready = |fd: i32| fds.iter().any(|p| p.fd == fd && p.revents != 0);
        if ready(self.children.as_raw_fd()) {
            self.reap()?;
        }
        for op in self.ops.values_mut() {
            op.advance(&ready);
        }
        self.leftovers.retain(|fd| !ready(fd.as_raw_fd()) || drain(fd));
        if self.conn.as_ref().is_some_and(|conn| ready(conn.fd())) {
            self.serve();
        }
        if ready(self.listener.as_raw_fd()) {
            self.accept();
        }
        if self.proxy.as_ref().is_some_and(|proxy| ready(proxy.as_raw_fd())) {
            self.accept_proxied();
        }
        self.settle();
        self.deliver();
        self.leave_if_alone();
        Ok(())
    }

    fn watched(&self) -> Vec<PollFd> {
        let entry = |fd: i32, events: i16| PollFd { fd, events, revents: 0 };
        let mut fds = vec![
            entry(self.listener.as_raw_fd(), POLLIN),
            entry(self.children.as_raw_fd(), POLLIN),
        ];
        if let Some(conn) = &self.conn {
            let out = if conn.backlog() > 0 { POLLOUT } else { 0 };
            fds.push(entry(conn.fd(), POLLIN | out));
        }
        if self.has_room() {
            fds.extend(self.proxy.iter().map(|proxy| entry(proxy.as_raw_fd(), POLLIN)));
        }
        fds.extend(self.ops.values().flat_map(Op::watched));
        fds.extend(self.leftovers.iter().map(|fd| entry(fd.as_raw_fd(), POLLIN)));
        fds
    }

    fn timeout_ms(&self) -> i32 {
        let now = Instant::now();
        let alone = self.conn.is_none().then(|| self.alone_since + self.orphan_ttl);
        let hunt = (!self.lost_supervisors.is_empty()).then(|| now + Duration::from_millis(5));
        let is_running = self.paused_at.is_none();
        let events = self.ops.values().filter_map(|op| op.next_event(now)).filter(|_| is_running);
        let next = events.chain(alone).chain(hunt).min();
        next.map_or(-1, |at| at.saturating_duration_since(now).as_micros().div_ceil(1000) as i32)
    }

    /// Accepts a new edge. It replaces the old one: requests that the old one sent and nobody read are
    /// dropped with its connection, so they can never run after the new one has asked what ran.
    fn accept(&mut self) {
        const FLAGS: i32 = 0o2000000;
        let fd = unsafe {
            accept4(self.listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), FLAGS)
        };
        if fd >= 0 {
            self.drop_conn();
            let _ = set_prctl(PR_SET_PDEATHSIG, 0, "death signal"); // the launcher may go now
            self.conn = Some(Conn::new(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }

    fn serve(&mut self) {
        let Some(conn) = self.conn.as_mut() else { return };
        match conn.receive() {
            Ok(frames) => frames.iter().for_each(|frame| self.handle(frame)),
            Err(_) => self.drop_conn(),
        }
    }

    fn drop_conn(&mut self) {
        if self.conn.is_some() && !self.is_claimed {
            std::process::exit(0);
        }
        self.go();
        self.ops.values_mut().for_each(Op::detach);
        self.ops.retain(|_, op| !op.is_connection());
        self.conn = None;
        self.alone_since = Instant::now();
    }

    fn handle(&mut self, frame: &Value) {
        let id = frame.get("op").int().unwrap_or(-1);
        match frame.get("t").str() {
            "hello" => self.hello(),
            "exec" => self.exec(id, frame),
            "connect" => self.connect(id, frame),
            "listen" => self.listen(id, frame),
            "unlisten" => self.proxy = None,
            "resize" => {
                if let Some(op) = self.ops.get(&id) {
                    op.resize(frame);
                }
            }
            "claim" => {
                self.is_claimed = true;
                self.orphan_ttl = Duration::from_secs(frame.get("orphan_ttl_s").int().unwrap_or(0).max(1) as u64);
            }
            "pause" => self.paused_at = self.paused_at.or(Some(Instant::now())),
            "halt" => self.halt(id),
            "resume" => self.resume(),
            "still" => self.stand_still(id, frame),
            "go" => self.go(),
            "helper" => self.start_helper(frame),
            "attach" => self.attach(id),
            "ack" => drop(self.ops.remove(&id)),
            "file" => self.reply(&files::handle(frame)),
            "stdin" => {
                if let Some(op) = self.ops.get_mut(&id) {
                    op.feed(frame.get("data").bytes().unwrap_or_default(), frame.get("eof").bool());
                }
            }
            "signal" => {
                if let (Some(op), Some(number)) = (self.ops.get(&id), frame.get("signal").int()) {
                    op.signal(number as i32);
                }
            }
            "cancel" => {
                if let Some(op) = self.ops.get_mut(&id) {
                    op.cancel();
                }
            }
            "exit" => std::process::exit(0),
            _ => {}
        }
    }

    /// Pauses the box by signals. It stays so when the edge dies, until one resumes it.
    fn halt(&mut self, id: i64) {
        if self.halted.is_none() {
            let (stopped, nobody_moves) = processes::stop_all();
            if !nobody_moves {
                processes::let_go(&stopped);
                return self.reply(&map! { "t" => "file", "op" => id, "errno" => 16, "error" => "its processes do not stop" });
            }
            self.halted = Some(stopped);
            self.paused_at = self.paused_at.or(Some(Instant::now()));
        }
        self.reply(&map! { "t" => "file", "op" => id, "value" => Value::Nil });
    }

    fn resume(&mut self) {
        if let Some(stopped) = self.halted.take() {
            processes::let_go(&stopped);
        }
        if let Some(since) = self.paused_at.take() {
            self.ops.values_mut().for_each(|op| op.delay(since.elapsed()));
        }
    }

    /// Stops the box's processes, unless they are frozen already, and opens this one's descriptors to
    /// an edge that is no root. The box's own user could open them, too: none of his processes may move.
    fn stand_still(&mut self, id: i64, frame: &Value) {
        if self.paused_at.is_none() {
            let (stopped, nobody_moves) = processes::stop_all();
            self.still = Some(stopped);
            self.paused_at = Some(Instant::now());
            if !nobody_moves {
                self.go();
                return self.reply(&map! { "t" => "file", "op" => id, "errno" => 16, "error" => "its processes do not stop" });
            }
        }
        if frame.get("opens").bool() {
            let _ = set_prctl(PR_SET_DUMPABLE, 1, "set dumpable");
        }
        self.reply(&map! { "t" => "file", "op" => id, "value" => Value::Nil });
    }

    fn go(&mut self) {
        let _ = set_prctl(PR_SET_DUMPABLE, 0, "set dumpable");
        if let Some(stopped) = self.still.take() {
            processes::let_go(&stopped);
            self.resume();
        }
    }

    fn reply(&mut self, value: &Value) {
        if let Some(conn) = self.conn.as_mut() {
            conn.send(value);
        }
    }

    fn hello(&mut self) {
        let ops = self.ops.iter().filter(|(id, _)| **id >= 0).map(|(id, op)| Value::Arr(vec![Value::Int(*id), op.state().into()]));
        let answer = map! { "t" => "hello", "protocol" => PROTOCOL, "halted" => self.halted.is_some(), "ops" => ops.collect::<Vec<_>>() };
        self.reply(&answer);
    }

    /// Starts an operation, once: a second request with the same number attaches to the first.
    fn exec(&mut self, id: i64, frame: &Value) {
        if !self.ops.contains_key(&id) {
            let op = Op::start(id, frame, self.spawner_for(frame));
            self.ops.insert(id, op);
        }
        self.attach(id);
    }

    fn connect(&mut self, id: i64, frame: &Value) {
        let mut op = Op::connect(id, frame);
        op.attach();
        self.ops.insert(id, op);
    }

    /// Opens the port of the proxy; its connections are the edge's to serve.
    fn listen(&mut self, id: i64, frame: &Value) {
        let port = frame.get("port").int().unwrap_or(0) as u16;
        if self.proxy.is_none() {
            self.proxy = TcpListener::bind(("127.0.0.1", port)).ok();
        }
        let Some(proxy) = &self.proxy else {
            return self.reply(&map! { "t" => "file", "op" => id, "errno" => 98, "error" => "the port is taken" });
        };
        set_nonblocking(proxy.as_raw_fd());
        self.reply(&map! { "t" => "file", "op" => id, "value" => Value::Nil });
    }

    fn accept_proxied(&mut self) {
        let Some(Ok((stream, _))) = self.proxy.as_ref().map(TcpListener::accept) else { return };
        let id = FIRST_ACCEPTED + self.accepted;
        let Ok(mut op) = Op::accepted(id, OwnedFd::from(stream)) else { return };
        self.accepted += 1;
        op.attach();
        self.ops.insert(id, op);
        self.reply(&map! { "t" => "accepted", "op" => id });
    }

    fn has_room(&self) -> bool {
        self.conn.is_some() && self.ops.range(FIRST_ACCEPTED..).count() < MAX_ACCEPTED
    }

    fn spawner_for(&mut self, frame: &Value) -> &Spawner {
        if frame.get("via").str() == "helper" {
            let ended = !self.ops.get(&HELPER).is_some_and(Op::is_running);
            if ended {
                if let Some((_, request)) = self.helper.take() {
                    self.start_helper(&request);
                }
            }
            if let Some((helper, _)) = &self.helper {
                return helper;
            }
        }
        &self.spawner
    }

    fn start_helper(&mut self, request: &Value) {
        if let Ok((op, socket)) = Op::start_helper(HELPER, request, &self.spawner) {
            self.ops.insert(HELPER, op);
            self.helper = Some((Spawner { pid: HELPER_PID, socket, fenced: self.spawner.fenced }, request.clone()));
        }
    }

    fn attach(&mut self, id: i64) {
        match self.ops.get_mut(&id) {
            Some(op) => op.attach(),
            None => self.reply(&map! { "t" => "unknown", "op" => id }),
        }
    }

    fn reap(&mut self) -> Res<()> {
        let mut events = [0; 128];
        while read_some(self.children.as_raw_fd(), &mut events)?.is_some_and(|got| got > 0) {}
        while let Some((pid, _)) = reap_one() {
            if pid == self.spawner.pid {
                // Something in the box killed it. Its supervisors are ours now; go on with a new one.
                self.spawner = Spawner::restart(&mut self.procs, self.spawner.fenced)?;
            }
        }
        Ok(())
    }

    /// Ends what has ended; kills what lost its supervisor.
    fn settle(&mut self) {
        let now = self.paused_at.unwrap_or_else(Instant::now);
        for op in self.ops.values_mut() {
            self.leftovers.extend(op.settle(now));
            self.lost_supervisors.extend(op.take_lost_supervisor());
        }
        let stuck_at: Vec<i32> = self.ops.values().filter_map(Op::stuck_at).collect();
        // What it left unread goes with it; its successor is not to blame.
        if stuck_at.contains(&self.spawner.pid) {
            send_signal(self.spawner.pid, SIGKILL);
        }
        if let (true, Some(helper)) = (stuck_at.contains(&HELPER_PID), self.ops.get_mut(&HELPER)) {
            helper.kill_tree();
        }
        if !self.lost_supervisors.is_empty() {
            // A dying supervisor closes its pipe before its children become ours: go on until it is gone.
            let gone = processes::are_gone(&self.lost_supervisors);
            let known: Vec<i32> = self.ops.values().filter_map(Op::supervisor).collect();
            if processes::kill_orphans(self.spawner.pid, &known) == 0 && gone {
                self.lost_supervisors.clear();
            }
        }
    }

    /// Sends what there is to send, until the edge takes no more or nothing is left.
    fn deliver(&mut self) {
        while let Some(conn) = self.conn.as_mut() {
            for op in self.ops.values_mut() {
                while conn.backlog() < MAX_BACKLOG {
                    let Some(frame) = op.next_frame() else { break };
                    conn.send(&frame);
                }
            }
            let had_something = conn.backlog() > 0;
            if conn.flush().is_err() {
                return self.drop_conn();
            }
            if !had_something || conn.backlog() > 0 {
                return;
            }
        }
    }

    /// A box that no edge has asked for during its orphan time frees the host by itself.
    fn leave_if_alone(&mut self) {
        if self.conn.is_none() && self.alone_since.elapsed() > self.orphan_ttl {
            std::process::exit(0);
        }
    }
}

/// Throws away what a pipe holds; false when it has reached its end.
fn drain(fd: &OwnedFd) -> bool {
    let ended = matches!(read_onto(fd.as_raw_fd(), &mut Vec::new(), LONG_READ), Ok(Some(0)) | Err(_));
    !ended
}
