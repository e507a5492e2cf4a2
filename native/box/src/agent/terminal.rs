//! Terminals: a master for process 1, a slave for the command.

use crate::msgpack::Value;
use crate::sys::*;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSWINSZ: u64 = 0x5414;
const O_NOCTTY: i32 = 0o400;

/// Opens a pair of the size that the request asks for.
pub fn open(request: &Value) -> Res<(OwnedFd, OwnedFd)> {
    let master = open_device("/dev/pts/ptmx")?;
    let (mut number, unlocked) = (0u32, 0i32);
    let fd = master.as_raw_fd();
    check(unsafe { ioctl(fd, TIOCSPTLCK, &unlocked) }.into(), "unlock terminal")?;
    check(unsafe { ioctl(fd, TIOCGPTN, &mut number) }.into(), "number of terminal")?;
    let slave = open_device(&format!("/dev/pts/{number}"))?;
    resize(&master, request);
    Ok((master, slave))
}

fn open_device(path: &str) -> Res<OwnedFd> {
    let file = fs::OpenOptions::new().read(true).write(true).custom_flags(O_NOCTTY).open(path);
    file.named(format!("open {path}")).map(OwnedFd::from)
}

pub fn resize(master: &OwnedFd, request: &Value) {
    let size = |key, default| request.get(key).int().unwrap_or(default) as u16;
    let window: [u16; 4] = [size("rows", 24), size("cols", 80), 0, 0];
    unsafe { ioctl(master.as_raw_fd(), TIOCSWINSZ, &window) };
}
