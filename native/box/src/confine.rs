//! What a process in a box gives up before it runs foreign code: capabilities, privilege gain,
//! dangerous system calls, unlimited resources.

use crate::msgpack::Value;
use crate::sys::{self, check, Res};
use std::os::fd::{AsRawFd, OwnedFd};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, NET_BIND_SERVICE, SYS_CHROOT: enough for
/// package managers and services, and valid only over what belongs to the box's own user namespace.
const KEPT_CAPABILITIES: [u32; 9] = [0, 1, 3, 4, 5, 6, 7, 10, 18];
const LAST_CAPABILITY: u64 = 40;

const PR_SET_SECCOMP: i32 = 22;
const PR_CAPBSET_DROP: i32 = 24;
const PR_SET_NO_NEW_PRIVS: i32 = 38;

/// Enters the user namespace (when privileged) and gives everything up, for good.
pub fn confine(userns: Option<&OwnedFd>, rlimits: &[Value]) -> Res<()> {
    if let Some(userns) = userns {
        check(unsafe { sys::setns(userns.as_raw_fd(), sys::CLONE_NEWUSER as i32) }.into(), "setns user")?;
        check(unsafe { sys::setgroups(0, std::ptr::null()) }.into(), "setgroups")?;
    }
    check(unsafe { sys::setresgid(0, 0, 0) }.into(), "setresgid")?;
    check(unsafe { sys::setresuid(0, 0, 0) }.into(), "setresuid")?;
    drop_capabilities()?;
    set_rlimits(rlimits)?;
    sys::set_prctl(PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")?;
    install_filter()?;
    // Nobody in the box may trace this process or open its descriptors through /proc.
    sys::set_prctl(sys::PR_SET_DUMPABLE, 0, "set dumpable")
}

fn drop_capabilities() -> Res<()> {
    for capability in 0..=LAST_CAPABILITY {
        if !KEPT_CAPABILITIES.contains(&(capability as u32)) {
            // A kernel with fewer capabilities answers EINVAL for the rest: nothing to drop there.
            let _ = sys::set_prctl(PR_CAPBSET_DROP, capability, "drop capability");
        }
    }
    let kept = KEPT_CAPABILITIES.iter().fold(0u32, |set, bit| set | 1 << bit);
    let header: [u32; 2] = [0x2008_0522, 0];
    let data: [u32; 6] = [kept, kept, 0, 0, 0, 0];
    let result = unsafe { sys::capset(header.as_ptr().cast(), data.as_ptr().cast()) };
    check(result.into(), "capset").map(drop)
}

/// Lowers limits; a hard limit is never raised (that needs CAP_SYS_RESOURCE, which even root may lack).
fn set_rlimits(rlimits: &[Value]) -> Res<()> {
    for pair in rlimits {
        let [Value::Int(what), Value::Int(wanted)] = pair.list() else { continue };
        let mut current = [0u64; 2];
        check(unsafe { sys::getrlimit(*what as i32, &mut current) }.into(), "getrlimit")?;
        let value = (*wanted as u64).min(current[1]);
        check(unsafe { sys::setrlimit(*what as i32, &[value, value]) }.into(), "setrlimit")?;
    }
    Ok(())
}

#[repr(C)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const EQUAL: u16 = 0x15;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0000 | 38;
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;

fn offset_arg(index: u32) -> u32 {
    16 + 8 * index
}

#[cfg(target_arch = "x86_64")]
mod numbers {
    pub const ARCH: u32 = 0xc000_003e;
    pub const X32_BIT: u32 = 0x4000_0000;
    pub const CLONE: u32 = 56;
    pub const UNSHARE: u32 = 272;
    pub const IOCTL: u32 = 16;
    pub const SOCKET: u32 = 41;
    pub const DENIED: &[u32] = &[
        165, 166, 155, 167, 168, 169, // mount umount2 pivot_root swapon swapoff reboot
        170, 171, 308, // sethostname setdomainname setns
        248, 249, 250, // add_key request_key keyctl
        321, 323, 298, // bpf userfaultfd perf_event_open
        246, 320, 175, 313, 176, // kexec_load kexec_file_load init_module finit_module delete_module
        303, 304, 163, 179, // name_to_handle_at open_by_handle_at acct quotactl
        164, 227, 305, 159, // settimeofday clock_settime clock_adjtime adjtimex
        172, 173, 212, 153, 103, // iopl ioperm lookup_dcookie vhangup syslog
        312, 300, // kcmp fanotify_init
    ];
}

#[cfg(target_arch = "aarch64")]
mod numbers {
    pub const ARCH: u32 = 0xc000_00b7;
    pub const X32_BIT: u32 = 0;
    pub const CLONE: u32 = 220;
    pub const UNSHARE: u32 = 97;
    pub const IOCTL: u32 = 29;
    pub const SOCKET: u32 = 198;
    pub const DENIED: &[u32] = &[
        40, 39, 41, 224, 225, 142, // mount umount2 pivot_root swapon swapoff reboot
        161, 162, 268, // sethostname setdomainname setns
        217, 218, 219, // add_key request_key keyctl
        280, 282, 241, // bpf userfaultfd perf_event_open
        104, 294, 105, 273, 106, // kexec_load kexec_file_load init_module finit_module delete_module
        264, 265, 89, 60, // name_to_handle_at open_by_handle_at acct quotactl
        170, 112, 266, 171, // settimeofday clock_settime clock_adjtime adjtimex
        18, 58, 116, // lookup_dcookie vhangup syslog
        272, 262, // kcmp fanotify_init
    ];
}

/// The same numbers everywhere: io_uring, the new mount interface, pidfd_getfd, quotactl_fd.
const DENIED_EVERYWHERE: &[u32] = &[425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 443, 467];
const CLONE3: u32 = 435;
const NAMESPACE_FLAGS: u32 = 0x7e02_0080;
const ADDRESS_FAMILIES: [u32; 2] = [38, 40]; // AF_ALG, AF_VSOCK: kernel attack surface, no use in a box
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;

/// A deny list: what a box must never reach even if a capability check were missing. clone3 hides its
/// flags from filters, so it answers ENOSYS and C libraries fall back to clone, whose flags are checked.
fn filter() -> Vec<Instruction> {
    use numbers::*;
    let op = |code, k| Instruction { code, if_true: 0, if_false: 0, k };
    let skip_unless = |k, count| Instruction { code: EQUAL, if_true: 0, if_false: count, k };
    let skip_unless_any = |k, count| Instruction { code: ANY_BIT, if_true: 0, if_false: count, k };
    let mut p = vec![op(LOAD, OFFSET_ARCH), Instruction { code: EQUAL, if_true: 1, if_false: 0, k: ARCH }];
    p.extend([op(RETURN, EPERM), op(LOAD, OFFSET_NR)]);
    if X32_BIT != 0 {
        p.extend([skip_unless_any(X32_BIT, 1), op(RETURN, EPERM)]);
    }
    for number in DENIED.iter().chain(DENIED_EVERYWHERE) {
        p.extend([skip_unless(*number, 1), op(RETURN, EPERM)]);
    }
    p.extend([skip_unless(CLONE3, 1), op(RETURN, ENOSYS)]);
    for number in [CLONE, UNSHARE] {
        p.extend([skip_unless(number, 4), op(LOAD, offset_arg(0)), skip_unless_any(NAMESPACE_FLAGS, 1)]);
        p.extend([op(RETURN, EPERM), op(RETURN, ALLOW)]);
    }
    p.extend([skip_unless(SOCKET, 6), op(LOAD, offset_arg(0))]);
    for family in ADDRESS_FAMILIES {
        p.extend([skip_unless(family, 1), op(RETURN, EPERM)]);
    }
    p.push(op(RETURN, ALLOW));
    // Terminal injection, and the XFS family (type 'X'), which has bypassed file permissions before.
    p.extend([skip_unless(IOCTL, 11), op(LOAD, offset_arg(1))]);
    for request in [TIOCSTI, TIOCLINUX] {
        p.extend([skip_unless(request, 1), op(RETURN, EPERM)]);
    }
    p.extend([skip_unless(FS_IOC_FSGETXATTR, 1), op(RETURN, ALLOW)]);
    p.extend([op(AND, 0xff00), skip_unless(0x5800, 1), op(RETURN, EPERM), op(RETURN, ALLOW)]);
    p.push(op(RETURN, ALLOW));
    p
}

fn install_filter() -> Res<()> {
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const Instruction,
    }
    let filter = filter();
    let program = Program { len: filter.len() as u16, filter: filter.as_ptr() };
    const SECCOMP_MODE_FILTER: u64 = 2;
    let address = &program as *const Program as u64;
    check(unsafe { sys::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address, 0, 0) }.into(), "seccomp").map(drop)
}
