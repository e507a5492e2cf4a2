//! Landlock, where the kernel has it: one more fence for commands, which no uid and no capability opens.
//!
//! Process 1 stays outside the fence, so nothing inside can signal or trace it, whoever it runs as. Device
//! nodes cannot be made, and abstract sockets reach no further than the fence. Older kernels offer less.

use crate::sys::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const SYS_CREATE_RULESET: i64 = 444;
const SYS_ADD_RULE: i64 = 445;
const SYS_RESTRICT_SELF: i64 = 446;
const VERSION: u32 = 1;
const RULE_PATH_BENEATH: i32 = 1;

const MAKE_CHARACTER_DEVICE: u64 = 1 << 6;
const MAKE_BLOCK_DEVICE: u64 = 1 << 11;
/// Renames and links between folders: any rule set refuses them unless it names and allows them.
const REFER: u64 = 1 << 13;
const SCOPE_ABSTRACT_SOCKETS: u64 = 1;
const SCOPE_SIGNALS: u64 = 2;

/// The first version that knows REFER; before it, every rule set breaks programs that move files.
const FIRST_USABLE: i64 = 2;
const FIRST_WITH_NETWORK: i64 = 4;
const FIRST_WITH_SCOPES: i64 = 6;

#[repr(C)]
#[derive(Default)]
struct Rules {
    handled_files: u64,
    handled_network: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// The kernel's version of the interface, if it is one that can be used.
pub fn version() -> Res<i64> {
    let version = check(unsafe { syscall(SYS_CREATE_RULESET, 0usize, 0usize, VERSION) }, "landlock")?;
    if version < FIRST_USABLE {
        return Err(Fail { what: format!("landlock version {version}, {FIRST_USABLE} is needed"), errno: 38 });
    }
    Ok(version)
}

/// Puts the caller and all its later children behind the fence; needs no_new_privs.
pub fn restrict() -> Res<()> {
    let version = version()?;
    let mut rules = Rules { handled_files: MAKE_CHARACTER_DEVICE | MAKE_BLOCK_DEVICE | REFER, ..Rules::default() };
    let size: usize = match version {
        FIRST_WITH_SCOPES.. => 24,
        FIRST_WITH_NETWORK.. => 16,
        _ => 8,
    };
    if version >= FIRST_WITH_SCOPES {
        rules.scoped = SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS;
    }
    let made = check(unsafe { syscall(SYS_CREATE_RULESET, &rules as *const Rules, size, 0u32) }, "landlock rules")?;
    let ruleset = unsafe { OwnedFd::from_raw_fd(made as i32) };
    let root = open_path("/")?;
    let rule = PathBeneath { allowed: REFER, parent: root.as_raw_fd() };
    let address = &rule as *const PathBeneath;
    check(unsafe { syscall(SYS_ADD_RULE, ruleset.as_raw_fd(), RULE_PATH_BENEATH, address, 0u32) }, "landlock rule")?;
    check(unsafe { syscall(SYS_RESTRICT_SELF, ruleset.as_raw_fd(), 0u32) }, "landlock").map(drop)
}
