//! The one connection to the edge: frames in, frames out, never blocking.

use crate::frame;
use crate::msgpack::Value;
use crate::sys::{self, Fail, Res};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

pub struct Conn {
    fd: OwnedFd,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Conn {
    pub fn new(fd: OwnedFd) -> Conn {
        sys::set_nonblocking(fd.as_raw_fd());
        Conn { fd, incoming: Vec::new(), outgoing: Vec::new() }
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Bytes that wait to be sent.
    pub fn backlog(&self) -> usize {
        self.outgoing.len()
    }

    pub fn send(&mut self, value: &Value) {
        self.outgoing.extend(frame::pack(value));
    }

    /// Reads what is there and returns the whole frames; an error means the edge is gone or mad.
    pub fn receive(&mut self) -> Res<Vec<Value>> {
        let most = if self.incoming.len() < sys::SHORT_READ { sys::SHORT_READ } else { sys::LONG_READ };
        if sys::read_onto(self.fd.as_raw_fd(), &mut self.incoming, most)? == Some(0) {
            return Err(Fail { what: "the edge closed".into(), errno: 0 });
        }
        let mut frames = Vec::new();
        while let Some(value) = frame::unpack(&mut self.incoming)? {
            frames.push(value);
        }
        Ok(frames)
    }

    pub fn flush(&mut self) -> Res<()> {
        while !self.outgoing.is_empty() {
            match sys::write_some(self.fd(), &self.outgoing)? {
                0 => break,
                put => drop(self.outgoing.drain(..put)),
            }
        }
        Ok(())
    }
}
