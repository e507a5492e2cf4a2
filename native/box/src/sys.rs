//! System calls that the standard library does not offer, each with the step's name in its error.

use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

extern "C" {
    pub fn syscall(num: c_long, ...) -> c_long;
    fn mount(src: *const c_char, at: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn clone(child: extern "C" fn(*mut c_void) -> c_int, stack: *mut c_void, flags: c_int, argument: *mut c_void, ...) -> c_int;
    fn utimensat(dir: c_int, path: *const c_char, times: *const c_void, flags: c_int) -> c_int;
    fn faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int;
    fn fchdir(fd: c_int) -> c_int;
    fn umount2(at: *const c_char, flags: c_int) -> c_int;
    fn sethostname(name: *const c_char, len: usize) -> c_int;
    fn mknod(path: *const c_char, mode: c_uint, dev: u64) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int;
    fn connect(fd: c_int, addr: *const c_void, len: c_uint) -> c_int;
    fn bind(fd: c_int, addr: *const c_void, len: c_uint) -> c_int;
    fn sendmsg(fd: c_int, msg: *const MsgHdr, flags: c_int) -> isize;
    fn recvmsg(fd: c_int, msg: *mut MsgHdr, flags: c_int) -> isize;
    fn pipe2(pair: *mut c_int, flags: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, flags: c_int) -> c_int;
    fn signalfd(fd: c_int, mask: *const SigSet, flags: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
    pub fn listen(fd: c_int, backlog: c_int) -> c_int;
    pub fn accept4(fd: c_int, addr: *mut c_void, len: *mut c_uint, flags: c_int) -> c_int;
    pub fn poll(fds: *mut PollFd, count: c_ulong, timeout_ms: c_int) -> c_int;
    pub fn fork() -> c_int;
    pub fn setsid() -> c_int;
    pub fn shutdown(fd: c_int, how: c_int) -> c_int;
    pub fn close(fd: c_int) -> c_int;
    pub fn kill(pid: c_int, signal: c_int) -> c_int;
    pub fn dup2(old: c_int, new: c_int) -> c_int;
    pub fn execve(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    pub fn _exit(code: c_int) -> !;
    pub fn setns(fd: c_int, kind: c_int) -> c_int;
    pub fn unshare(flags: c_int) -> c_int;
    pub fn prctl(op: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
    pub fn signal(signal: c_int, handler: usize) -> usize;
    pub fn setresuid(a: c_uint, b: c_uint, c: c_uint) -> c_int;
    pub fn setresgid(a: c_uint, b: c_uint, c: c_uint) -> c_int;
    pub fn setgroups(count: usize, list: *const c_uint) -> c_int;
    pub fn getuid() -> c_uint;
    pub fn getgid() -> c_uint;
    pub fn umask(mask: c_uint) -> c_uint;
    pub fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    pub fn capset(header: *const c_void, data: *const c_void) -> c_int;
    pub fn getrlimit(what: c_int, limit: *mut [u64; 2]) -> c_int;
    pub fn setrlimit(what: c_int, limit: *const [u64; 2]) -> c_int;
}

pub const MS_RDONLY: c_ulong = 1;
pub const MS_NOSUID: c_ulong = 2;
pub const MS_NODEV: c_ulong = 4;
pub const MS_NOEXEC: c_ulong = 8;
pub const MS_REC: c_ulong = 16384;
pub const MS_PRIVATE: c_ulong = 1 << 18;
pub const MS_SLAVE: c_ulong = 1 << 19;
pub const MNT_DETACH: c_int = 2;

pub const CLONE_NEWNS: u64 = 0x0002_0000;
pub const CLONE_NEWCGROUP: u64 = 0x0200_0000;
pub const CLONE_NEWUTS: u64 = 0x0400_0000;
pub const CLONE_NEWIPC: u64 = 0x0800_0000;
pub const CLONE_NEWUSER: u64 = 0x1000_0000;
pub const CLONE_NEWPID: u64 = 0x2000_0000;
pub const CLONE_NEWNET: u64 = 0x4000_0000;

pub const MOUNT_ATTR_RDONLY: u64 = 1;
pub const MOUNT_ATTR_NOSUID: u64 = 2;
pub const MOUNT_ATTR_NODEV: u64 = 4;
pub const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

pub const POLLIN: i16 = 1;
pub const POLLOUT: i16 = 4;
pub const SHUT_WR: c_int = 1;
pub const SIGKILL: c_int = 9;
pub const SIGCONT: c_int = 18;
pub const SIGSTOP: c_int = 19;
pub const SIGPIPE: c_int = 13;
pub const SIGCHLD: c_int = 17;
pub const SIG_DFL: usize = 0;
pub const SIG_IGN: usize = 1;
pub const ENOENT: i32 = 2;
pub const EAGAIN: i32 = 11;
pub const EINTR: i32 = 4;

const AF_UNIX: c_int = 1;
const SOCK_STREAM: c_int = 1;
const SOCK_CLOEXEC: c_int = 0o2000000;
const O_CLOEXEC: c_int = 0o2000000;
const O_NONBLOCK: c_int = 0o4000;
pub const O_PATH: c_int = 0o10000000;
const AT_FDCWD: c_int = -100;
const AT_EMPTY_PATH: c_uint = 0x1000;

const SYS_CLONE3: c_long = 435;
const SYS_OPEN_TREE: c_long = 428;
const SYS_MOVE_MOUNT: c_long = 429;
const SYS_MOUNT_SETATTR: c_long = 442;
const SYS_OPENAT2: c_long = 437;
const SYS_PIDFD_OPEN: c_long = 434;
const SYS_PIDFD_SEND_SIGNAL: c_long = 424;
#[cfg(target_arch = "x86_64")]
const SYS_PIVOT_ROOT: c_long = 155;
#[cfg(target_arch = "aarch64")]
const SYS_PIVOT_ROOT: c_long = 41;

/// A failed step: its name and the kernel's errno.
#[derive(Debug, Clone)]
pub struct Fail {
    pub what: String,
    pub errno: i32,
}

pub type Res<T> = Result<T, Fail>;

impl Fail {
    pub fn last(what: impl Into<String>) -> Fail {
        Fail { what: what.into(), errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }
    }

    pub fn of(what: impl Into<String>, error: &std::io::Error) -> Fail {
        Fail { what: what.into(), errno: error.raw_os_error().unwrap_or(0) }
    }

    pub fn text(&self) -> String {
        if self.errno == 0 {
            return self.what.clone();
        }
        format!("{}: {}", self.what, std::io::Error::from_raw_os_error(self.errno))
    }
}

/// Adds the step's name to an I/O error.
pub trait Named<T> {
    fn named(self, what: impl Into<String>) -> Res<T>;
}

impl<T> Named<T> for std::io::Result<T> {
    fn named(self, what: impl Into<String>) -> Res<T> {
        self.map_err(|error| Fail::of(what, &error))
    }
}

pub fn check(result: c_long, what: &str) -> Res<c_long> {
    if result < 0 { Err(Fail::last(what)) } else { Ok(result) }
}

pub fn cstr(text: &str) -> Res<CString> {
    CString::new(text).map_err(|_| Fail { what: format!("text with a NUL byte: {text:?}"), errno: 0 })
}

pub fn owned(fd: c_long, what: &str) -> Res<OwnedFd> {
    check(fd, what).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[repr(C)]
pub struct PollFd {
    pub fd: c_int,
    pub events: i16,
    pub revents: i16,
}

#[repr(C)]
struct SigSet([u64; 16]);

#[repr(C)]
struct IoVec {
    base: *mut c_void,
    len: usize,
}

#[repr(C)]
struct MsgHdr {
    name: *mut c_void,
    name_len: c_uint,
    iov: *mut IoVec,
    iov_len: usize,
    control: *mut c_void,
    control_len: usize,
    flags: c_int,
}

/// Waits for events; a negative timeout waits for ever.
pub fn wait(fds: &mut [PollFd], timeout_ms: i32) -> Res<()> {
    let result = unsafe { poll(fds.as_mut_ptr(), fds.len() as c_ulong, timeout_ms) };
    if result < 0 {
        let fail = Fail::last("poll");
        if fail.errno == EINTR {
            fds.iter_mut().for_each(|fd| fd.revents = 0);
            return Ok(());
        }
        return Err(fail);
    }
    Ok(())
}

pub fn mount_fs(src: &str, at: &str, kind: &str, flags: c_ulong, data: &str) -> Res<()> {
    let (src, target, kind_c, data) = (cstr(src)?, cstr(at)?, cstr(kind)?, cstr(data)?);
    let result = unsafe {
        mount(src.as_ptr(), target.as_ptr(), kind_c.as_ptr(), flags, data.as_ptr().cast())
    };
    check(result.into(), &format!("mount {kind} on {at}")).map(drop)
}

pub fn unmount_detached(at: &str) -> Res<()> {
    let path = cstr(at)?;
    check(unsafe { umount2(path.as_ptr(), MNT_DETACH) }.into(), &format!("umount {at}")).map(drop)
}

/// Makes the current directory the root and the old root unreachable.
pub fn pivot_here() -> Res<()> {
    let dot = cstr(".")?;
    check(unsafe { syscall(SYS_PIVOT_ROOT, dot.as_ptr(), dot.as_ptr()) }, "pivot_root")?;
    unmount_detached(".")?;
    std::env::set_current_dir("/").named("chdir /")
}

pub fn enter_directory(dir: &OwnedFd, what: &str) -> Res<()> {
    check(unsafe { fchdir(dir.as_raw_fd()) }.into(), &format!("chdir {what}")).map(drop)
}

pub fn set_hostname(name: &str) -> Res<()> {
    check(unsafe { sethostname(name.as_ptr().cast(), name.len()) }.into(), "sethostname").map(drop)
}

pub fn make_device(path: &str, major: u64, minor: u64) -> Res<()> {
    const S_IFCHR: c_uint = 0o020000;
    let c = cstr(path)?;
    let dev = (major << 8) | minor;
    check(unsafe { mknod(c.as_ptr(), S_IFCHR | 0o666, dev) }.into(), &format!("mknod {path}")).map(drop)
}

/// A detached copy of the mount at `path`; with `recursive` also of the mounts below it, which a
/// user namespace demands since it may not uncover what they hide.
pub fn clone_tree(path: &str, recursive: bool) -> Res<OwnedFd> {
    clone_tree_at(AT_FDCWD, path, recursive)
}

/// The same for a path that begins at an open directory.
pub fn clone_tree_at(dir: RawFd, path: &str, recursive: bool) -> Res<OwnedFd> {
    const OPEN_TREE_CLONE: c_uint = 1;
    const AT_RECURSIVE: c_uint = 0x8000;
    let c = cstr(path)?;
    let depth = if recursive { AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | O_CLOEXEC as c_uint | depth;
    let fd = unsafe { syscall(SYS_OPEN_TREE, dir, c.as_ptr(), flags) };
    owned(fd, &format!("open_tree {path}"))
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

pub fn set_mount_attr(mount: &OwnedFd, set: u64, userns: Option<&OwnedFd>) -> Res<()> {
    let idmap = if userns.is_some() { MOUNT_ATTR_IDMAP } else { 0 };
    let attr = MountAttr {
        set: set | idmap,
        clear: 0,
        propagation: 0,
        userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let empty = cstr("")?;
    let size = std::mem::size_of::<MountAttr>();
    let result = unsafe {
        syscall(SYS_MOUNT_SETATTR, mount.as_raw_fd(), empty.as_ptr(), AT_EMPTY_PATH, &attr as *const MountAttr, size)
    };
    check(result, "mount_setattr").map(drop)
}

/// Attaches a detached mount at an open O_PATH descriptor.
pub fn attach_mount(mount: &OwnedFd, at: &OwnedFd, what: &str) -> Res<()> {
    const T_EMPTY_PATH: c_uint = 0x40;
    move_mount(mount, at, "", T_EMPTY_PATH, what)
}

/// Attaches a detached mount at an entry of an open directory.
pub fn attach_mount_at(mount: &OwnedFd, dir: &OwnedFd, name: &str) -> Res<()> {
    move_mount(mount, dir, name, 0, name)
}

fn move_mount(mount: &OwnedFd, dir: &OwnedFd, name: &str, flags: c_uint, what: &str) -> Res<()> {
    const F_EMPTY_PATH: c_uint = 4;
    let (empty, name) = (cstr("")?, cstr(name)?);
    let result = unsafe {
        syscall(SYS_MOVE_MOUNT, mount.as_raw_fd(), empty.as_ptr(), dir.as_raw_fd(), name.as_ptr(), F_EMPTY_PATH | flags)
    };
    check(result, &format!("move_mount {what}")).map(drop)
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// Opens `path` below `root` as if `root` were `/`: neither `..` nor absolute links leave it.
pub fn open_in_root(root: &OwnedFd, path: &str, flags: c_int) -> Res<OwnedFd> {
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let how = OpenHow { flags: (flags | O_CLOEXEC) as u64, mode: 0, resolve: RESOLVE_IN_ROOT };
    let c = cstr(path)?;
    let size = std::mem::size_of::<OpenHow>();
    let fd = unsafe {
        syscall(SYS_OPENAT2, root.as_raw_fd(), c.as_ptr(), &how as *const OpenHow, size)
    };
    owned(fd, &format!("openat2 {path}"))
}

/// Whether an open directory has an entry of this name.
pub fn exists_at(dir: &OwnedFd, name: &str) -> Res<bool> {
    let c = cstr(name)?;
    if unsafe { faccessat(dir.as_raw_fd(), c.as_ptr(), 0, 0) } == 0 {
        return Ok(true);
    }
    let fail = Fail::last(format!("look for {name}"));
    if fail.errno == ENOENT { Ok(false) } else { Err(fail) }
}

/// Sets a path's time of change to now; false if there is no such path.
pub fn touch(path: &str) -> bool {
    cstr(path).is_ok_and(|c| unsafe { utimensat(AT_FDCWD, c.as_ptr(), std::ptr::null(), 0) } == 0)
}

pub fn open_path(path: &str) -> Res<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(O_PATH).open(path);
    file.named(format!("open {path}")).map(OwnedFd::from)
}

#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into new namespaces; 0 in the child. The caller must be single-threaded.
pub fn clone_into(flags: u64) -> Res<i32> {
    let mut args: CloneArgs = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.exit_signal = SIGCHLD as u64;
    let size = std::mem::size_of::<CloneArgs>();
    let pid = unsafe { syscall(SYS_CLONE3, &args as *const CloneArgs, size) };
    check(pid, "clone3 with new namespaces").map(|pid| pid as i32)
}

pub fn fork_child() -> Res<i32> {
    check(unsafe { fork() }.into(), "fork").map(|pid| pid as i32)
}

/// Runs `child` in a process that shares this one's memory, which stands still until that process has
/// been replaced by a program or has ended. The caller must be single-threaded.
pub fn run_sharing_memory(child: extern "C" fn(*mut c_void) -> c_int, argument: *mut c_void) -> Res<i32> {
    const CLONE_VM: c_int = 0x100;
    const CLONE_VFORK: c_int = 0x4000;
    const STACK_BYTES: usize = 256 << 10; // taken as it is touched
    let mut stack = Vec::<u128>::with_capacity(STACK_BYTES / 16);
    let pid = unsafe { clone(child, stack.as_mut_ptr().add(STACK_BYTES / 16).cast(), CLONE_VM | CLONE_VFORK | SIGCHLD, argument) };
    check(pid.into(), "clone").map(|pid| pid as i32)
}

pub fn stream_pair() -> Res<(OwnedFd, OwnedFd)> {
    let mut pair = [0; 2];
    let result = unsafe { socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.as_mut_ptr()) };
    check(result.into(), "socketpair")?;
    Ok(unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) })
}

pub fn pipe() -> Res<(OwnedFd, OwnedFd)> {
    let mut pair = [0; 2];
    check(unsafe { pipe2(pair.as_mut_ptr(), O_CLOEXEC) }.into(), "pipe")?;
    Ok(unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) })
}

pub fn set_nonblocking(fd: RawFd) {
    extern "C" {
        fn fcntl(fd: c_int, op: c_int, ...) -> c_int;
    }
    const F_GETFL: c_int = 3;
    const F_SETFL: c_int = 4;
    unsafe { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) };
}

/// A Unix socket bound at `path` that does not listen yet: who listens is who `SO_PEERCRED` names.
pub fn bound_socket(path: &str) -> Res<OwnedFd> {
    let fd = owned(unsafe { socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) }.into(), "socket")?;
    let mut addr = [0u8; 110];
    addr[0] = AF_UNIX as u8;
    if path.len() > 107 {
        return Err(Fail { what: format!("socket path too long: {path}"), errno: 36 });
    }
    addr[2..2 + path.len()].copy_from_slice(path.as_bytes());
    let len = (2 + path.len() + 1) as c_uint;
    let result = unsafe { bind(fd.as_raw_fd(), addr.as_ptr().cast(), len) };
    check(result.into(), &format!("bind {path}"))?;
    Ok(fd)
}

/// Begins to connect to a TCP port of this network namespace's loopback; reading tells how it went.
pub fn connect_loopback(port: u16) -> Res<OwnedFd> {
    const AF_INET: c_int = 2;
    const SOCK_NONBLOCK: c_int = 0o4000;
    const EINPROGRESS: i32 = 115;
    let kind = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
    let fd = owned(unsafe { socket(AF_INET, kind, 0) }.into(), "socket")?;
    let mut addr = [0u8; 16];
    addr[..2].copy_from_slice(&(AF_INET as u16).to_ne_bytes());
    addr[2..4].copy_from_slice(&port.to_be_bytes());
    addr[4..8].copy_from_slice(&[127, 0, 0, 1]);
    if unsafe { connect(fd.as_raw_fd(), addr.as_ptr().cast(), 16) } < 0 {
        let fail = Fail::last(format!("connect to port {port}"));
        if fail.errno != EINPROGRESS {
            return Err(fail);
        }
    }
    Ok(fd)
}

const CMSG_HEADER: usize = 16;

/// Sends bytes with file descriptors attached to the first of them.
pub fn send_with_fds(socket: &OwnedFd, data: &[u8], fds: &[RawFd]) -> Res<()> {
    let mut control = vec![0u64; (CMSG_HEADER + fds.len() * 4).div_ceil(8)];
    let control_len = control.len() * 8;
    unsafe {
        let p = control.as_mut_ptr().cast::<u8>();
        p.cast::<usize>().write(CMSG_HEADER + fds.len() * 4);
        p.add(8).cast::<c_int>().write(1); // SOL_SOCKET
        p.add(12).cast::<c_int>().write(1); // SCM_RIGHTS
        for (i, fd) in fds.iter().enumerate() {
            p.add(CMSG_HEADER + i * 4).cast::<c_int>().write(*fd);
        }
    }
    let mut iov = IoVec { base: data.as_ptr() as *mut c_void, len: data.len() };
    let msg = MsgHdr {
        name: std::ptr::null_mut(),
        name_len: 0,
        iov: &mut iov,
        iov_len: 1,
        control: if fds.is_empty() { std::ptr::null_mut() } else { control.as_mut_ptr().cast() },
        control_len: if fds.is_empty() { 0 } else { control_len },
        flags: 0,
    };
    const MSG_NOSIGNAL: c_int = 0x4000;
    let sent = check(unsafe { sendmsg(socket.as_raw_fd(), &msg, MSG_NOSIGNAL) } as c_long, "sendmsg")?;
    write_all(socket.as_raw_fd(), &data[sent as usize..])
}

/// Appends up to `most` received bytes to `data`; returns their number and the descriptors that came along.
pub fn recv_with_fds(socket: &OwnedFd, data: &mut Vec<u8>, most: usize) -> Res<(usize, Vec<OwnedFd>)> {
    data.reserve(most);
    let mut control = [0u64; 16];
    let mut iov = IoVec { base: data.spare_capacity_mut().as_mut_ptr().cast(), len: most };
    let mut msg = MsgHdr {
        name: std::ptr::null_mut(),
        name_len: 0,
        iov: &mut iov,
        iov_len: 1,
        control: control.as_mut_ptr().cast(),
        control_len: 128,
        flags: 0,
    };
    const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
    let got = loop {
        let got = unsafe { recvmsg(socket.as_raw_fd(), &mut msg, MSG_CMSG_CLOEXEC) };
        if got >= 0 || Fail::last("").errno != EINTR {
            break got;
        }
    };
    let got = check(got as c_long, "recvmsg")? as usize;
    unsafe { data.set_len(data.len() + got) };
    let mut fds = Vec::new();
    if msg.control_len >= CMSG_HEADER {
        unsafe {
            let p = control.as_ptr().cast::<u8>();
            let len = p.cast::<usize>().read();
            for i in 0..(len - CMSG_HEADER) / 4 {
                fds.push(OwnedFd::from_raw_fd(p.add(CMSG_HEADER + i * 4).cast::<c_int>().read()));
            }
        }
    }
    Ok((got, fds))
}

extern "C" {
    fn read(fd: c_int, buf: *mut c_void, count: usize) -> isize;
    fn write(fd: c_int, buf: *const c_void, count: usize) -> isize;
}

/// Reads once; `Ok(None)` when a non-blocking descriptor has nothing.
pub fn read_some(fd: RawFd, buf: &mut [u8]) -> Res<Option<usize>> {
    let got = unsafe { read(fd, buf.as_mut_ptr().cast(), buf.len()) };
    if got >= 0 {
        return Ok(Some(got as usize));
    }
    let fail = Fail::last("read");
    if fail.errno == EAGAIN || fail.errno == EINTR { Ok(None) } else { Err(fail) }
}

/// Most messages and outputs fit one read of this size; what fills it is read on in large pieces.
pub const SHORT_READ: usize = 4096;
pub const LONG_READ: usize = 64 << 10;

/// Appends what one read of at most `most` bytes gives; else as `read_some`. The space is not zeroed
/// and not touched before: 64 KiB on the stack cost every new process sixteen page faults.
pub fn read_onto(fd: RawFd, data: &mut Vec<u8>, most: usize) -> Res<Option<usize>> {
    data.reserve(most);
    let got = unsafe { read(fd, data.spare_capacity_mut().as_mut_ptr().cast(), most) };
    if got >= 0 {
        unsafe { data.set_len(data.len() + got as usize) };
        return Ok(Some(got as usize));
    }
    let fail = Fail::last("read");
    if fail.errno == EAGAIN || fail.errno == EINTR { Ok(None) } else { Err(fail) }
}

/// Writes once; 0 when a non-blocking descriptor is full.
pub fn write_some(fd: RawFd, data: &[u8]) -> Res<usize> {
    let put = unsafe { write(fd, data.as_ptr().cast(), data.len()) };
    if put >= 0 {
        return Ok(put as usize);
    }
    let fail = Fail::last("write");
    if fail.errno == EAGAIN || fail.errno == EINTR { Ok(0) } else { Err(fail) }
}

pub fn read_exact(fd: RawFd, buf: &mut [u8]) -> Res<()> {
    let mut done = 0;
    while done < buf.len() {
        match read_some(fd, &mut buf[done..])? {
            Some(0) => return Err(Fail { what: "the other end closed".into(), errno: 0 }),
            Some(n) => done += n,
            None => wait(&mut [PollFd { fd, events: POLLIN, revents: 0 }], -1)?,
        }
    }
    Ok(())
}

/// How long a peer may take no byte at all before it counts as stuck.
const STALL_MS: i32 = 3000;

pub fn write_all(fd: RawFd, mut data: &[u8]) -> Res<()> {
    while !data.is_empty() {
        let written = write_some(fd, data)?;
        data = &data[written..];
        if written == 0 {
            let mut fds = [PollFd { fd, events: POLLOUT, revents: 0 }];
            wait(&mut fds, STALL_MS)?;
            if fds[0].revents == 0 {
                return Err(Fail { what: "the other end does not read".into(), errno: EAGAIN });
            }
        }
    }
    Ok(())
}

/// Collects one exited child, if any: (pid, wait status).
pub fn reap_one() -> Option<(i32, i32)> {
    const WNOHANG: c_int = 1;
    let mut status = 0;
    let pid = unsafe { waitpid(-1, &mut status, WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Waits for any child; `None` when there are none left.
pub fn wait_any() -> Option<(i32, i32)> {
    loop {
        let mut status = 0;
        let pid = unsafe { waitpid(-1, &mut status, 0) };
        if pid > 0 {
            return Some((pid, status));
        }
        if Fail::last("").errno != EINTR {
            return None;
        }
    }
}

pub fn wait_pid(pid: i32) -> i32 {
    let mut status = 0;
    while unsafe { waitpid(pid, &mut status, 0) } < 0 && Fail::last("").errno == EINTR {}
    status
}

pub fn pidfd(pid: i32) -> Res<OwnedFd> {
    owned(unsafe { syscall(SYS_PIDFD_OPEN, pid, 0) }, &format!("pidfd_open {pid}"))
}

/// Sends a signal; a process that is already gone is none of our business.
pub fn send_signal(pid: i32, number: i32) {
    unsafe { kill(pid, number) };
}

/// Sets the disposition of every ordinary signal.
pub fn set_all_signals(handler: usize) {
    for number in 1..32 {
        unsafe { signal(number, handler) };
    }
}

pub fn pidfd_kill(fd: &OwnedFd) {
    unsafe { syscall(SYS_PIDFD_SEND_SIGNAL, fd.as_raw_fd(), SIGKILL, 0usize, 0) };
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable when a child ends.
pub fn child_events() -> Res<OwnedFd> {
    let mut set = SigSet([0; 16]);
    set.0[0] = 1 << (SIGCHLD - 1);
    check(unsafe { sigprocmask(0, &set, std::ptr::null_mut()) }.into(), "sigprocmask")?;
    let flags = O_CLOEXEC | O_NONBLOCK;
    owned(unsafe { signalfd(-1, &set, flags) }.into(), "signalfd")
}

pub fn unblock_signals() {
    let set = SigSet([0; 16]);
    unsafe { sigprocmask(2, &set, std::ptr::null_mut()) };
}

/// The signal that a process gets when its parent dies.
pub const PR_SET_PDEATHSIG: i32 = 1;

/// Whether others of the same user may trace a process and open its descriptors.
pub const PR_SET_DUMPABLE: i32 = 4;

pub fn set_prctl(op: c_int, value: u64, what: &str) -> Res<()> {
    check(unsafe { prctl(op, value, 0, 0, 0) }.into(), what).map(drop)
}
