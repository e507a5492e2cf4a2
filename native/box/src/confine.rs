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
const AT_LEAST: u16 = 0x35;
const JUMP: u16 = 0x05;
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

/// What the filter does with a system call.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Return(u32),
    /// Goes on at the rules for this call's arguments.
    Look(Arguments),
}

#[derive(Clone, Copy, PartialEq)]
enum Arguments {
    /// Namespaces are refused, by clone and by unshare.
    Namespaces,
    Socket,
    Ioctl,
}

const ALLOWED: Verdict = Verdict::Return(ALLOW);
const REFUSED: Verdict = Verdict::Return(EPERM);

/// A deny list: what a box must never reach even if a capability check were missing. clone3 hides its
/// flags from filters, so it answers ENOSYS and C libraries fall back to clone, whose flags are checked.
fn verdicts() -> Vec<(u32, Verdict)> {
    use numbers::*;
    let mut all: Vec<_> = DENIED.iter().chain(DENIED_EVERYWHERE).map(|number| (*number, REFUSED)).collect();
    all.extend([CLONE, UNSHARE].map(|number| (number, Verdict::Look(Arguments::Namespaces))));
    all.extend([(SOCKET, Verdict::Look(Arguments::Socket)), (IOCTL, Verdict::Look(Arguments::Ioctl))]);
    all.push((CLONE3, Verdict::Return(ENOSYS)));
    all.sort_unstable_by_key(|(number, _)| *number);
    all
}

/// The same for every number: (first number, verdict), each up to where the next one begins.
fn ranges() -> Vec<(u32, Verdict)> {
    let mut ranges = vec![(0, ALLOWED)];
    for (number, verdict) in verdicts() {
        if ranges.last().is_some_and(|(start, _)| *start == number) {
            ranges.pop();
        }
        if !ranges.last().is_some_and(|(_, last)| *last == verdict) {
            ranges.push((number, verdict));
        }
        ranges.push((number + 1, ALLOWED));
    }
    if numbers::X32_BIT != 0 {
        ranges.push((numbers::X32_BIT, REFUSED));
    }
    ranges
}

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, k }
}

fn skip_unless(k: u32, count: u8) -> Instruction {
    Instruction { code: EQUAL, if_true: 0, if_false: count, k }
}

/// The program. The kernel runs it once for every number there is when it is installed, and that for
/// each box: so it finds a number by halving, not by asking for one after the other.
fn filter() -> Vec<Instruction> {
    let mut p = vec![op(LOAD, OFFSET_ARCH), Instruction { code: EQUAL, if_true: 1, if_false: 0, k: numbers::ARCH }];
    p.extend([op(RETURN, EPERM), op(LOAD, OFFSET_NR)]);
    let mut looks = Vec::new();
    halve(&ranges(), &mut p, &mut looks);
    for arguments in [Arguments::Namespaces, Arguments::Socket, Arguments::Ioctl] {
        let start = p.len();
        for (at, _) in looks.iter().filter(|(_, wanted)| *wanted == arguments) {
            p[*at].k = (start - at - 1) as u32;
        }
        p.extend(argument_rules(arguments));
    }
    p
}

/// Finds the range that holds the loaded number; `looks` gets the jumps whose goals are not known yet.
fn halve(ranges: &[(u32, Verdict)], p: &mut Vec<Instruction>, looks: &mut Vec<(usize, Arguments)>) {
    if let [(_, verdict)] = ranges {
        match verdict {
            Verdict::Return(value) => p.push(op(RETURN, *value)),
            Verdict::Look(arguments) => {
                looks.push((p.len(), *arguments));
                p.push(op(JUMP, 0));
            }
        }
        return;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let at = p.len();
    p.push(op(AT_LEAST, high[0].0));
    halve(low, p, looks);
    p[at].if_true = (p.len() - at - 1) as u8;
    halve(high, p, looks);
}

fn argument_rules(arguments: Arguments) -> Vec<Instruction> {
    let mut p = Vec::new();
    match arguments {
        Arguments::Namespaces => {
            p.push(op(LOAD, offset_arg(0)));
            p.push(Instruction { code: ANY_BIT, if_true: 0, if_false: 1, k: NAMESPACE_FLAGS });
            p.push(op(RETURN, EPERM));
        }
        Arguments::Socket => {
            p.push(op(LOAD, offset_arg(0)));
            for family in ADDRESS_FAMILIES {
                p.extend([skip_unless(family, 1), op(RETURN, EPERM)]);
            }
        }
        // Terminal injection, and the XFS family (type 'X'), which has bypassed file permissions before.
        Arguments::Ioctl => {
            p.push(op(LOAD, offset_arg(1)));
            for request in [TIOCSTI, TIOCLINUX] {
                p.extend([skip_unless(request, 1), op(RETURN, EPERM)]);
            }
            p.extend([skip_unless(FS_IOC_FSGETXATTR, 1), op(RETURN, ALLOW)]);
            p.extend([op(AND, 0xff00), skip_unless(0x5800, 1), op(RETURN, EPERM)]);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with a program, for the instructions that occur here.
    fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u32; 2]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let i = &program[at];
            at += 1;
            let is_so = match i.code {
                RETURN => return i.k,
                LOAD => {
                    loaded = match i.k {
                        OFFSET_NR => number,
                        OFFSET_ARCH => arch,
                        offset => arguments[(offset as usize - 16) / 8],
                    };
                    continue;
                }
                AND => {
                    loaded &= i.k;
                    continue;
                }
                JUMP => {
                    at += i.k as usize;
                    continue;
                }
                EQUAL => loaded == i.k,
                ANY_BIT => loaded & i.k != 0,
                AT_LEAST => loaded >= i.k,
                code => panic!("instruction {code:#x}"),
            };
            at += usize::from(if is_so { i.if_true } else { i.if_false });
        }
    }

    /// The rules, asked one after the other.
    fn plain(arch: u32, number: u32, arguments: [u32; 2]) -> u32 {
        use numbers::*;
        let is_x32 = X32_BIT != 0 && number >= X32_BIT;
        if arch != ARCH || is_x32 || DENIED.contains(&number) || DENIED_EVERYWHERE.contains(&number) {
            return EPERM;
        }
        let refused = match number {
            CLONE3 => return ENOSYS,
            CLONE | UNSHARE => arguments[0] & NAMESPACE_FLAGS != 0,
            SOCKET => ADDRESS_FAMILIES.contains(&arguments[0]),
            IOCTL => {
                let is_xfs = arguments[1] & 0xff00 == 0x5800 && arguments[1] != FS_IOC_FSGETXATTR;
                [TIOCSTI, TIOCLINUX].contains(&arguments[1]) || is_xfs
            }
            _ => false,
        };
        if refused { EPERM } else { ALLOW }
    }

    #[test]
    fn halving_finds_what_asking_one_after_the_other_finds() {
        let program = filter();
        let values = [0, 1, 2, 11, 38, 40, 0x0002_0000, 0x1000_0011, TIOCSTI, TIOCLINUX, FS_IOC_FSGETXATTR, 0x5801, 0xc020_5819];
        let numbers = (0..1024).chain([0x3fff_ffff, 0x4000_0000, 0x4000_00a5, u32::MAX]);
        for number in numbers {
            for arguments in values.iter().flat_map(|a| values.map(|b| [*a, b])) {
                let got = run(&program, numbers::ARCH, number, arguments);
                assert_eq!(got, plain(numbers::ARCH, number, arguments), "call {number} {arguments:x?}");
            }
            assert_eq!(run(&program, 3, number, [0, 0]), EPERM);
        }
    }

    #[test]
    fn a_number_is_found_in_few_steps() {
        let longest = ranges().len().next_power_of_two().trailing_zeros();
        assert!(longest <= 7 && filter().len() < 256, "{longest} steps, {} instructions", filter().len());
    }
}
