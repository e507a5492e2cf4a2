//! One command: a supervisor that adopts whatever the command leaves behind, and the command itself.
//!
//! The supervisor is a child subreaper, so daemons that double-fork or start new sessions stay its
//! descendants and can be found by parentage. It ends when the last of them has ended.
//!
//! The command's process borrows the supervisor's memory until it is replaced by the program: copying
//! page tables for an instant cost as much as everything else that happens here.

use crate::msgpack::Value;
use crate::sys::*;
use crate::turns;
use crate::users::User;
use std::ffi::{c_char, c_int, c_void, CString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// What the status pipe tells: pairs of little-endian i32, one of these and its value. The two numbers
/// come twice where the command's process is killed just as it tells them.
pub const SUPERVISOR: i32 = 0;
pub const COMMAND: i32 = 1;
/// The command's wait status.
pub const STATUS: i32 = 2;

fn tell(status: RawFd, pairs: &[(i32, i32)]) {
    let bytes: Vec<u8> = pairs.iter().flat_map(|(what, value)| [what.to_le_bytes(), value.to_le_bytes()].concat()).collect();
    let _ = write_all(status, &bytes);
}

struct Command<'a> {
    job: &'a Value,
    /// stdin, stdout, stderr, status pipe
    fds: [RawFd; 4],
    supervisor: i32,
    has_told: bool,
}

pub fn supervise(job: &Value, fds: [OwnedFd; 4], spawner_socket: &OwnedFd) -> i32 {
    const PR_SET_CHILD_SUBREAPER: i32 = 36;
    set_all_signals(SIG_IGN);
    unsafe {
        close(spawner_socket.as_raw_fd());
        signal(SIGCHLD, SIG_DFL);
    }
    if set_prctl(PR_SET_CHILD_SUBREAPER, 1, "subreaper").is_err() {
        return 1;
    }
    let supervisor = std::process::id() as i32;
    let mut command = Command { job, fds: fds.each_ref().map(AsRawFd::as_raw_fd), supervisor, has_told: false };
    let Ok(pid) = run_sharing_memory(run, (&mut command as *mut Command).cast()) else { return 1 };
    // As another user it may have made the memory that we share one that others may look into.
    let _ = set_prctl(PR_SET_DUMPABLE, 0, "set dumpable");
    let [stdin, stdout, stderr, status] = fds;
    drop((stdin, stdout, stderr)); // the command has its own
    if !command.has_told {
        tell(status.as_raw_fd(), &[(SUPERVISOR, supervisor), (COMMAND, pid)]);
    }
    while let Some((ended, code)) = wait_any() {
        if ended == pid {
            tell(status.as_raw_fd(), &[(STATUS, code)]);
        }
    }
    0
}

/// The command's process. Until it is replaced, what it writes to memory its supervisor sees; descriptors,
/// folder, mask and signals are its own.
extern "C" fn run(command: *mut c_void) -> c_int {
    let command = unsafe { &mut *command.cast::<Command>() };
    let (job, fds) = (command.job, command.fds);
    unsafe {
        tell(fds[3], &[(SUPERVISOR, command.supervisor), (COMMAND, std::process::id() as i32)]);
        command.has_told = true;
        setsid();
        for target in 0..3 {
            dup2(fds[target], target as c_int);
        }
        umask(0o022);
    }
    set_all_signals(SIG_DFL);
    if job.get("tty").bool() {
        const TIOCSCTTY: u64 = 0x540e;
        unsafe { ioctl(0, TIOCSCTTY, 0) };
    }
    let prepared = prepare(job);
    if job.get("t").str() != "helper" {
        turns::ordinary(); // the helper forks calls, and each call does this for itself
    }
    let (code, text) = match prepared {
        Ok((argv, env)) => (launch(&argv, &env)).unwrap_or((NOT_RUNNABLE, "nothing to run".into())),
        Err(fail) => (NOT_RUNNABLE, fail.text()),
    };
    let _ = write_all(2, format!("baleen: {text}\n").as_bytes());
    unsafe { _exit(code) }
}

type Strings = Vec<CString>;

/// Becomes the job's user in the job's directory and returns its argv and environment.
fn prepare(job: &Value) -> Res<(Strings, Strings)> {
    let wanted = job.get("user").str();
    let user = if wanted.is_empty() { User::root() } else { User::find(wanted)? };
    if !wanted.is_empty() && (user.uid, user.gid) != (0, 0) {
        become_user(&user)?;
    }
    let cwd = job.get("cwd").str();
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    std::env::set_current_dir(cwd).named(format!("cannot enter {cwd}"))?;
    let mut env = vec![
        ("PATH".to_string(), DEFAULT_PATH.to_string().into_bytes()),
        ("HOME".to_string(), user.home.into_bytes()),
        ("LANG".to_string(), b"C.UTF-8".to_vec()),
    ];
    for (key, value) in job.get("env").entries() {
        env.retain(|(name, _)| name != key);
        env.push((key.clone(), value.bytes().unwrap_or_default().to_vec()));
    }
    let nul = |_| Fail { what: "an argument or variable holds a NUL byte".into(), errno: 0 };
    let argv = job.get("argv").list().iter().map(|item| CString::new(item.bytes().unwrap_or_default()));
    let argv = argv.collect::<Result<Vec<_>, _>>().map_err(nul)?;
    let env = env.into_iter().map(|(key, value)| CString::new([key.as_bytes(), b"=", &value].concat()));
    Ok((argv, env.collect::<Result<Vec<_>, _>>().map_err(nul)?))
}

fn become_user(user: &User) -> Res<()> {
    let what = format!("become user {}", user.uid);
    check(unsafe { setgroups(user.groups.len(), user.groups.as_ptr()) }.into(), &what)?;
    check(unsafe { setresgid(user.gid, user.gid, user.gid) }.into(), &what)?;
    check(unsafe { setresuid(user.uid, user.uid, user.uid) }.into(), &what).map(drop)
}

/// Replaces the process; returns only with the exit code and text of what went wrong.
fn launch(argv: &Strings, env: &Strings) -> Option<(i32, String)> {
    let name = argv.first()?;
    let shown = name.to_string_lossy().into_owned();
    let path = env.iter().rev().find_map(|entry| entry.to_str().ok()?.strip_prefix("PATH="));
    let mut denied = false;
    for candidate in candidates(&shown, name, path.unwrap_or(DEFAULT_PATH)) {
        let errno = replace_process(&candidate, argv, env);
        const EACCES: i32 = 13;
        const ENOEXEC: i32 = 8;
        if errno == ENOEXEC {
            let shell = CString::new("/bin/sh").ok()?;
            let script = [&[shell.clone(), candidate], &argv[1..]].concat();
            replace_process(&shell, &script, env);
        }
        denied |= errno == EACCES || errno == ENOEXEC;
        if errno == 7 {
            return Some((NOT_RUNNABLE, format!("{shown}: argument list too long")));
        }
    }
    Some(if denied { (NOT_RUNNABLE, format!("{shown}: permission denied")) } else { (NOT_FOUND, format!("{shown}: not found")) })
}

fn candidates(shown: &str, name: &CString, path: &str) -> Vec<CString> {
    if shown.contains('/') {
        return vec![name.clone()];
    }
    let join = |dir: &str| CString::new(format!("{dir}/{shown}")).ok();
    path.split(':').filter(|dir| !dir.is_empty()).filter_map(join).collect()
}

fn replace_process(path: &CString, argv: &[CString], env: &[CString]) -> i32 {
    let pointers = |list: &[CString]| {
        let mut out: Vec<*const c_char> = list.iter().map(|item| item.as_ptr()).collect();
        out.push(std::ptr::null());
        out
    };
    let (argv, env) = (pointers(argv), pointers(env));
    unsafe { execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Fail::last("").errno
}
