//! One command: a supervisor that adopts whatever the command leaves behind, and the command itself.
//!
//! The supervisor is a child subreaper, so daemons that double-fork or start new sessions stay its
//! descendants and can be found by parentage. It ends when the last of them has ended.

use crate::msgpack::Value;
use crate::sys::*;
use crate::turns;
use crate::users::User;
use std::ffi::{c_char, CString};
use std::os::fd::{AsRawFd, OwnedFd};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// What the supervisor writes to the status pipe: its own process id and the command's, then the
/// command's wait status; each a little-endian i32.
pub fn supervise(job: &Value, fds: [OwnedFd; 4], spawner_socket: &OwnedFd) -> i32 {
    const PR_SET_CHILD_SUBREAPER: i32 = 36;
    let [stdin, stdout, stderr, status] = fds;
    set_all_signals(SIG_IGN);
    unsafe {
        close(spawner_socket.as_raw_fd());
        signal(SIGCHLD, SIG_DFL);
    }
    if set_prctl(PR_SET_CHILD_SUBREAPER, 1, "subreaper").is_err() {
        return 1;
    }
    let pid = match fork_child() {
        Ok(0) => run(job, &stdin, &stdout, &stderr),
        Ok(pid) => pid,
        Err(_) => return 1,
    };
    drop((stdin, stdout, stderr));
    let mut head = (std::process::id() as i32).to_le_bytes().to_vec();
    head.extend(pid.to_le_bytes());
    let _ = write_all(status.as_raw_fd(), &head);
    while let Some((ended, code)) = wait_any() {
        if ended == pid {
            let _ = write_all(status.as_raw_fd(), &code.to_le_bytes());
        }
    }
    0
}

fn run(job: &Value, stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> ! {
    unsafe {
        setsid();
        for (fd, target) in [(stdin, 0), (stdout, 1), (stderr, 2)] {
            dup2(fd.as_raw_fd(), target);
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
