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
    pub fn start(group: Option<&Group>) -> Res<Spawner> {
        let (ours, theirs) = stream_pair()?;
        match fork_child()? {
            0 => {
                let socket = keep_only(theirs);
                unsafe { _exit(main(&socket, group)) }
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

fn main(socket: &OwnedFd, group: Option<&Group>) -> i32 {
    if !report(socket, prepare(group)) {
        return 1;
    }
    let Ok((request, mut fds)) = receive(socket) else { return 0 };
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

fn serve(socket: &OwnedFd) -> i32 {
    unsafe { signal(SIGCHLD, SIG_IGN) }; // supervisors are reaped by the kernel
    unblock_signals();
    while let Ok((job, fds)) = receive(socket) {
        let Ok(fds) = <[OwnedFd; 4]>::try_from(fds) else { continue };
        // Without a process the status pipe closes unwritten: process 1 reports that nothing started.
        if let Ok(0) = fork_child() {
            unsafe { _exit(exec::supervise(&job, fds, socket)) }
        }
    }
    0
}
