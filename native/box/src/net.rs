//! The loopback device of a fresh network namespace.

use crate::sys::{self, check, Named, Res};
use std::os::fd::AsRawFd;

#[repr(C)]
struct IfRequest {
    name: [u8; 16],
    flags: i16,
    pad: [u8; 22],
}

pub fn loopback_up() -> Res<()> {
    const SIOCGIFFLAGS: u64 = 0x8913;
    const SIOCSIFFLAGS: u64 = 0x8914;
    const IFF_UP: i16 = 1;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").named("socket for loopback")?;
    let mut request = IfRequest { name: [0; 16], flags: 0, pad: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    let fd = socket.as_raw_fd();
    check(unsafe { sys::ioctl(fd, SIOCGIFFLAGS, &mut request) }.into(), "read loopback flags")?;
    request.flags |= IFF_UP;
    check(unsafe { sys::ioctl(fd, SIOCSIFFLAGS, &mut request) }.into(), "loopback up").map(drop)
}
