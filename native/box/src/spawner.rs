//! The spawner: a process inside the box's limits whose only work is to fork commands.
//!
//! Process 1 stays outside the limits, so a fork bomb or a full memory group cannot stop it from
//! answering and killing. Children inherit the spawner's control groups, which costs nothing, while a
//! move per command would wait for an RCU grace period each time.

use crate::cgroup::Group;
use crate::confine::confine;
use crate::cradle::{keep_only, receive};
use crate::exec;
use crate::frame;
use crate::landlock;
use crate::map;
use crate::msgpack::Value;
use crate::sys::*;
use crate::turns::{self, Turns};
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

pub struct Spawner {
    pub pid: i32,
    pub socket: OwnedFd,
    /// Whether it and its commands are behind a Landlock fence.
    pub fenced: bool,
}

impl Spawner {
    /// Forks the spawner, which joins `group` on its own time and then waits to be confined.
    /// When it is to be confined it takes `turns`.
    pub fn start(group: Option<&Group>, turns: Option<Turns>) -> Res<Spawner> {
        let (ours, theirs) = stream_pair()?;
        match fork_child()? {
            0 => {
                let socket = keep_only(theirs);
                unsafe { _exit(main(&socket, group, turns)) }
            }
            pid => Ok(Spawner { pid, socket: ours, fenced: false }),
        }
    }

    /// Forks a replacement from the already confined process 1, into the groups of `procs`.
    pub fn restart(procs: &mut [fs::File], fenced: bool) -> Res<Spawner> {
        let (ours, theirs) = stream_pair()?;
        match fork_child()? {
            0 => {
                let joined = procs.iter_mut().all(|file| file.write_all(b"0").is_ok());
                let socket = keep_only(theirs);
                let ready = joined && (!fenced || landlock::restrict().is_ok());
                unsafe { _exit(if ready { serve(&socket) } else { 1 }) }
            }
            pid => {
                set_nonblocking(ours.as_raw_fd());
                Ok(Spawner { pid, socket: ours, fenced })
            }
        }
    }

    /// Takes its rights away; `fence` says whether Landlock is to do its part, where there is any.
    pub fn confine(&mut self, rlimits: &[Value], userns: Option<&OwnedFd>, fence: bool) -> Res<()> {
        self.fenced = fence && landlock::version().is_ok();
        let fds: Vec<RawFd> = userns.iter().map(|fd| fd.as_raw_fd()).collect();
        let request = map! { "rlimits" => rlimits.to_vec(), "fence" => self.fenced };
        send_with_fds(&self.socket, &frame::pack(&request), &fds)?;
        self.outcome()?;
        set_nonblocking(self.socket.as_raw_fd()); // a stopped spawner must not stop process 1
        Ok(())
    }

    /// Waits until the spawner is in its control groups.
    pub fn joined(&self) -> Res<()> {
        self.outcome()
    }

    fn outcome(&self) -> Res<()> {
        let (answer, _) = receive(&self.socket)?;
        match answer.get("error") {
            Value::Str(text) => Err(Fail { what: text.clone(), errno: 0 }),
            _ => Ok(()),
        }
    }

    /// Starts one command; `fds` are its stdin, stdout, stderr and status pipe.
    pub fn start_command(&self, job: &Value, fds: [RawFd; 4]) -> Res<()> {
        send_with_fds(&self.socket, &frame::pack(job), &fds)
    }
}

fn main(socket: &OwnedFd, group: Option<&Group>, turns: Option<Turns>) -> i32 {
    if !report(socket, prepare(group)) {
        return 1;
    }
    let Ok((request, mut fds)) = receive(socket) else { return 0 };
    turns.iter().for_each(turns::take);
    let userns = fds.pop();
    let confined = std::env::set_current_dir("/")
        .named("chdir /")
        .and_then(|()| confine(userns.as_ref(), request.get("rlimits").list()))
        .and_then(|()| if request.get("fence").bool() { landlock::restrict() } else { Ok(()) });
    drop(userns);
    if report(socket, confined) { serve(socket) } else { 1 }
}

/// Tells process 1 how a step went; whether to go on.
fn report(socket: &OwnedFd, outcome: Res<()>) -> bool {
    let (answer, fine) = match outcome {
        Ok(()) => (map! { "ok" => true }, true),
        Err(fail) => (map! { "error" => fail.text() }, false),
    };
    frame::send(socket.as_raw_fd(), &answer).is_ok() && fine
}

fn prepare(group: Option<&Group>) -> Res<()> {
    if let Some(group) = group {
        group.join()?;
    }
    // Commands are better victims for the kernel's memory killer than process 1 or this process.
    fs::write("/proc/self/oom_score_adj", "500").named("write oom_score_adj")?;
    // The box sees its own group as the root of the hierarchy.
    check(unsafe { unshare(CLONE_NEWCGROUP as i32) }.into(), "unshare cgroup").map(drop)
}

/// Boxes that live for one command are many, and a process that nobody needs costs them. After so many
/// commands a box counts as one that will run another.
const FORKED_ON_DEMAND: usize = 2;

/// How long after a command has begun the next supervisor is forked, unless another one comes before:
/// right now the command needs the processor.
const FORK_AFTER_MS: i32 = 2;

fn serve(socket: &OwnedFd) -> i32 {
    unsafe { signal(SIGCHLD, SIG_IGN) }; // supervisors are reaped by the kernel
    unblock_signals();
    for _ in 0..FORKED_ON_DEMAND {
        if !fork_on_demand(socket) {
            return 0;
        }
    }
    while fork_ahead(socket) {}
    0
}

/// Waits for a command, then forks its supervisor; false when there will be no more.
fn fork_on_demand(socket: &OwnedFd) -> bool {
    let Ok((job, fds)) = receive(socket) else { return false };
    let Ok(fds) = <[OwnedFd; 4]>::try_from(fds) else { return true };
    // Without a process the status pipe closes unwritten: process 1 reports that nothing started.
    if let Ok(0) = fork_child() {
        unsafe { _exit(exec::supervise(&job, fds, socket)) }
    }
    true
}

/// Forks a supervisor that waits for the next command itself; returns when it has one or was killed
/// before, false when there will be no more.
fn fork_ahead(socket: &OwnedFd) -> bool {
    let Ok((news, teller)) = pipe() else { return fork_on_demand(socket) };
    match fork_child() {
        Ok(0) => {
            drop(news);
            unsafe { _exit(await_command(socket, teller)) }
        }
        Ok(_) => drop(teller),
        Err(_) => return fork_on_demand(socket), // the box is full: perhaps not any more by then
    }
    let mut word = [0];
    match read_exact(news.as_raw_fd(), &mut word) {
        Ok(()) if word[0] == ENDED => false,
        Ok(()) => {
            let _ = wait(&mut [PollFd { fd: socket.as_raw_fd(), events: POLLIN, revents: 0 }], FORK_AFTER_MS);
            true
        }
        Err(_) => true, // somebody in the box has killed it; nobody has taken the next command
    }
}

const BEGUN: u8 = 1;
const ENDED: u8 = 0;

fn await_command(socket: &OwnedFd, teller: OwnedFd) -> i32 {
    let _ = set_prctl(PR_SET_PDEATHSIG, SIGKILL as u64, "death signal"); // it takes commands for this spawner alone
    let Ok((job, fds)) = receive(socket) else {
        let _ = write_all(teller.as_raw_fd(), &[ENDED]);
        return 0;
    };
    let _ = set_prctl(PR_SET_PDEATHSIG, 0, "death signal");
    let _ = write_all(teller.as_raw_fd(), &[BEGUN]);
    drop(teller);
    let Ok(fds) = <[OwnedFd; 4]>::try_from(fds) else { return 0 };
    exec::supervise(&job, fds, socket)
}
