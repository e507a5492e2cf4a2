//! A cradle: a process already in its own namespaces and control groups that waits to become a box.
//!
//! Everything that does not depend on what the box will hold happens ahead of time and off the caller's
//! clock: namespaces, loopback, control groups and the slow first move into them.

use crate::agent;
use crate::cgroup::Group;
use crate::confine::confine;
use crate::frame;
use crate::map;
use crate::msgpack::Value;
use crate::net;
use crate::rootfs;
use crate::spawner::Spawner;
use crate::sys::*;
use crate::turns;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

pub struct Cradle {
    pub pid: i32,
    pub socket: OwnedFd,
    pub group: Group,
}

/// How this edge launches: as root with id-mapped images, or as an ordinary user who maps only himself.
#[derive(Clone)]
pub struct Mode {
    pub privileged: bool,
    pub own_network: bool,
    pub group_parents: Vec<String>,
}

impl Cradle {
    /// Begins a cradle in groups where nobody is.
    pub fn prepare(mode: &Mode, group: Group) -> Res<Cradle> {
        let prepared = Cradle::launch(mode, &group);
        if prepared.is_err() {
            group.remove();
        }
        let (pid, socket) = prepared?;
        Ok(Cradle { pid, socket, group })
    }

    fn launch(mode: &Mode, group: &Group) -> Res<(i32, OwnedFd)> {
        let mut flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS;
        if mode.own_network {
            flags |= CLONE_NEWNET;
        }
        if !mode.privileged {
            flags |= CLONE_NEWUSER;
        }
        let ids = unsafe { (getuid(), getgid()) };
        let (ours, theirs) = stream_pair()?;
        match clone_into(flags)? {
            0 => process_one(theirs, mode, group, ids),
            pid => Ok((pid, ours)),
        }
    }

    /// Hands the box its specification; process 1 answers on `socket` when it is ready or has failed.
    pub fn claim(&self, spec: &Value, listener: &OwnedFd, userns: Option<&OwnedFd>, keeper: Option<&OwnedFd>) -> Res<()> {
        for limit in spec.get("limits").list() {
            if let [Value::Str(file), Value::Str(value)] = limit.list() {
                self.group.limit(file, value)?;
            }
        }
        let mut fds: Vec<RawFd> = vec![listener.as_raw_fd()];
        fds.extend(userns.map(AsRawFd::as_raw_fd));
        fds.extend(keeper.map(AsRawFd::as_raw_fd));
        send_with_fds(&self.socket, &frame::pack(spec), &fds)
    }

    /// Ends a cradle that never became a box.
    pub fn discard(&self) {
        unsafe { kill(self.pid, SIGKILL) };
        wait_pid(self.pid);
        self.group.remove();
    }
}

/// Closes every descriptor but one, which ends up as number 3; the standard streams become /dev/null.
/// The zygote's standard input is its line to the edge: no process of a box may hold it.
pub fn keep_only(socket: OwnedFd) -> OwnedFd {
    extern "C" {
        fn fcntl(fd: i32, op: i32, ...) -> i32;
    }
    const SYS_CLOSE_RANGE: i64 = 436;
    const F_SETFD: i32 = 2;
    const FD_CLOEXEC: i32 = 1;
    let old = socket.into_raw_fd();
    unsafe {
        if old != 3 {
            dup2(old, 3);
        }
        fcntl(3, F_SETFD, FD_CLOEXEC);
        syscall(SYS_CLOSE_RANGE, 4, u32::MAX, 0);
    }
    if silence_streams().is_err() {
        unsafe { _exit(1) }
    }
    unsafe { OwnedFd::from_raw_fd(3) }
}

fn process_one(socket: OwnedFd, mode: &Mode, group: &Group, ids: (u32, u32)) -> ! {
    let socket = keep_only(socket);
    let failed = match become_box(&socket, mode, group, ids) {
        Ok((listener, spawner, procs)) => {
            drop(socket);
            agent::run(listener, spawner, procs)
        }
        Err(fail) => fail,
    };
    let message = map! { "t" => "failed", "error" => failed.text(), "errno" => failed.errno };
    let _ = frame::send(socket.as_raw_fd(), &message);
    unsafe { _exit(1) }
}

type Started = (OwnedFd, Spawner, Vec<fs::File>);

fn become_box(socket: &OwnedFd, mode: &Mode, group: &Group, ids: (u32, u32)) -> Res<Started> {
    set_prctl(PR_SET_PDEATHSIG, SIGKILL as u64, "death signal")?;
    let turns = turns::ordinary();
    if !mode.privileged {
        map_only(ids)?;
    }
    std::env::set_current_dir("/").named("chdir /")?;
    mount_fs("none", "/", "none", MS_REC | MS_SLAVE, "")?;
    if mode.own_network {
        net::loopback_up()?;
    }
    let procs = group.dirs.iter().map(|dir| open_procs(dir)).collect::<Res<Vec<_>>>()?;
    let mut spawner = Spawner::start(Some(group), turns)?;
    let (spec, mut fds) = receive(socket)?;
    if !spec.get("ahead").bool() {
        turns.iter().for_each(turns::take);
    }
    if fds.is_empty() {
        return Err(Fail { what: "the specification came without a socket".into(), errno: 0 });
    }
    let listener = fds.remove(0);
    let keeper = if spec.get("keeper").bool() { fds.pop() } else { None };
    let userns = fds.pop();
    let unmapped = rootfs::build(&spec, userns.as_ref(), keeper.as_ref())?;
    drop(keeper);
    spawner.joined()?; // it needs the host's tree to reach its groups
    pivot_here()?;
    set_hostname(spec.get("hostname").str())?;
    let rlimits = spec.get("rlimits").list();
    spawner.confine(rlimits, userns.as_ref(), spec.get("landlock").bool())?;
    confine(userns.as_ref(), &[])?;
    check(unsafe { listen(listener.as_raw_fd(), 16) }.into(), "listen")?;
    // Changing ids has cleared it. Until an edge connects, the box ends with its launcher.
    set_prctl(PR_SET_PDEATHSIG, SIGKILL as u64, "death signal")?;
    turns.iter().for_each(turns::take);
    let unmapped = unmapped.into_iter().map(Value::Str).collect::<Vec<_>>();
    frame::send(socket.as_raw_fd(), &map! { "t" => "ready", "unmapped" => unmapped, "landlock" => spawner.fenced })?;
    Ok((listener, spawner, procs))
}

fn open_procs(dir: &str) -> Res<fs::File> {
    let path = format!("{dir}/cgroup.procs");
    fs::OpenOptions::new().write(true).open(&path).named(format!("open {path}"))
}

/// Maps the caller, and nobody else, to root of the new user namespace.
pub fn map_only((uid, gid): (u32, u32)) -> Res<()> {
    fs::write("/proc/self/setgroups", "deny").named("write setgroups")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).named("write uid_map")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).named("write gid_map")
}

fn silence_streams() -> Res<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").named("open /dev/null")?;
    for stream in 0..3 {
        check(unsafe { dup2(null.as_raw_fd(), stream) }.into(), "dup2")?;
    }
    Ok(())
}

/// One frame and the descriptors that came with it.
pub fn receive(socket: &OwnedFd) -> Res<(Value, Vec<OwnedFd>)> {
    let mut data = Vec::new();
    let mut fds = Vec::new();
    loop {
        let most = if data.is_empty() { SHORT_READ } else { LONG_READ };
        let (got, more) = recv_with_fds(socket, &mut data, most)?;
        if got == 0 {
            return Err(Fail { what: "the other end closed".into(), errno: 0 });
        }
        fds.extend(more);
        if let Some(value) = frame::unpack(&mut data)? {
            return Ok((value, fds));
        }
    }
}
