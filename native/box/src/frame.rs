//! Frames: u32 length, u32 CRC-32 of the payload (both little-endian), MessagePack payload.

use crate::msgpack::Value;
use crate::sys::{self, Fail, Res};
use std::os::fd::RawFd;

/// Version of the messages between edge and this binary; both sides say it in their first frame.
pub const PROTOCOL: i64 = 4;
pub const MAX_FRAME: usize = 32 << 20;
pub const HEADER: usize = 8;

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        t[0][i] = crc;
        i += 1;
    }
    let mut k = 1;
    while k < 8 {
        i = 0;
        while i < 256 {
            t[k][i] = (t[k - 1][i] >> 8) ^ t[0][(t[k - 1][i] & 255) as usize];
            i += 1;
        }
        k += 1;
    }
    t
}

/// CRC-32 (IEEE 802.3), eight bytes at a time.
pub fn crc32(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    let chunks = data.chunks_exact(8);
    let rest = chunks.remainder();
    for c in chunks {
        let low = crc ^ u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
        crc = TABLES[7][(low & 255) as usize]
            ^ TABLES[6][(low >> 8 & 255) as usize]
            ^ TABLES[5][(low >> 16 & 255) as usize]
            ^ TABLES[4][(low >> 24) as usize]
            ^ TABLES[3][c[4] as usize]
            ^ TABLES[2][c[5] as usize]
            ^ TABLES[1][c[6] as usize]
            ^ TABLES[0][c[7] as usize];
    }
    for byte in rest {
        crc = TABLES[0][((crc ^ u32::from(*byte)) & 255) as usize] ^ (crc >> 8);
    }
    !crc
}

pub fn pack(value: &Value) -> Vec<u8> {
    let body = value.encode();
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(crc32(&body).to_le_bytes());
    out.extend(body);
    out
}

/// Takes the first whole frame off `buf`; `Err` when the bytes cannot be a frame.
pub fn unpack(buf: &mut Vec<u8>) -> Res<Option<Value>> {
    if buf.len() < HEADER {
        return Ok(None);
    }
    let len = u32::from_le_bytes([buf[0], buf[1], buf[2], buf[3]]) as usize;
    let crc = u32::from_le_bytes([buf[4], buf[5], buf[6], buf[7]]);
    if len > MAX_FRAME {
        return Err(Fail { what: format!("frame of {len} bytes is over the limit {MAX_FRAME}"), errno: 0 });
    }
    if buf.len() < HEADER + len {
        return Ok(None);
    }
    let body = &buf[HEADER..HEADER + len];
    if crc32(body) != crc {
        return Err(Fail { what: "frame checksum is wrong".into(), errno: 0 });
    }
    let value = Value::decode(body)
        .ok_or_else(|| Fail { what: "frame is not MessagePack".into(), errno: 0 })?;
    buf.drain(..HEADER + len);
    Ok(Some(value))
}

pub fn send(fd: RawFd, value: &Value) -> Res<()> {
    sys::write_all(fd, &pack(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_common_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_damaged_frame_is_refused() {
        let good = pack(&Value::Str("hello".into()));
        for i in HEADER..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1;
            assert!(unpack(&mut bad).is_err());
        }
        assert!(unpack(&mut vec![0xff; 16]).is_err());
    }

    #[test]
    fn frames_arrive_in_any_pieces() {
        let whole = [pack(&Value::Int(1)), pack(&Value::Int(2))].concat();
        let mut buf = Vec::new();
        let mut seen = Vec::new();
        for byte in whole {
            buf.push(byte);
            seen.extend(unpack(&mut buf).unwrap());
        }
        assert_eq!(seen, [Value::Int(1), Value::Int(2)]);
    }
}
