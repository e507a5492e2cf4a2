//! Turns of the processor. The edge takes short ones and everything here inherits them (see `turns.py`).
//! A box's own command gets ordinary ones again; so does a box that is built ahead, until it is ready:
//! whoever waits for an answer then runs as soon as he can.

use crate::sys::syscall;
use std::ffi::{c_long, c_uint};

#[cfg(target_arch = "x86_64")]
const SYS_SCHED_SETATTR: c_long = 314;
#[cfg(target_arch = "aarch64")]
const SYS_SCHED_SETATTR: c_long = 274;

const ORDINARY_POLICY: u32 = 0;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Turns {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// For the ordinary policy the length of a turn; 0 stands for the kernel's own.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Gives the calling process ordinary turns, unless somebody has chosen another policy for all of us.
/// Returns those that it had, if they were changed.
pub fn ordinary() -> Option<Turns> {
    const SYS_SCHED_GETATTR: c_long = SYS_SCHED_SETATTR + 1;
    let size = std::mem::size_of::<Turns>();
    let mut now = Turns::default();
    let none: c_uint = 0;
    let known = unsafe { syscall(SYS_SCHED_GETATTR, 0, &mut now as *mut Turns, size as c_uint, none) };
    if known != 0 || now.policy != ORDINARY_POLICY {
        return None;
    }
    take(&Turns { size: size as u32, nice: now.nice, ..Turns::default() });
    Some(now)
}

/// Gives the calling process turns of a kind that it has had.
pub fn take(turns: &Turns) {
    let none: c_uint = 0;
    unsafe { syscall(SYS_SCHED_SETATTR, 0, turns as *const Turns, none) };
}
