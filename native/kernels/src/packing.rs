//! Codes of 8 and 4 bits under power-of-two scales; see `kernels/packing.py`.

use crate::simd::F16;

pub const TILE: usize = 64;
pub const BLOCK: usize = 32;
const NAN_SCALE: u8 = 255;

/// 2^(e - 127); what 255 scales is no finite number.
#[inline(always)]
pub fn power(scale: u8) -> f32 {
    // byte 0 is 2^-127, a subnormal
    f32::from_bits(if scale == 0 { 1 << 22 } else { (scale as u32) << 23 })
}

/// The byte of the least power of two >= x > 0.
fn power_at_least(x: f32) -> u8 {
    if x.is_nan() {
        return NAN_SCALE;
    }
    let bits = x.to_bits();
    let exponent = (bits >> 23) + u32::from(bits & 0x7f_ffff != 0);
    exponent.min(254) as u8
}

/// The largest magnitude, or no number if any value is none.
fn amax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, x| if x.abs() > most || x.is_nan() { x.abs() } else { most })
}

/// Rounded to the nearest bf16, halves to even; what is no number stays none.
#[inline(always)]
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[inline(always)]
pub fn round_bf16(x: f32) -> f32 {
    f32::from_bits((to_bf16(x) as u32) << 16)
}

/// A product's inputs, rounded to bf16.
pub unsafe fn narrow(values: &[f32], target: *mut f32) {
    let target = target as *mut u16;
    let whole = values.len() / 16 * 16;
    for i in (0..whole).step_by(16) {
        F16::load(values.as_ptr().add(i)).store_bf16(target.add(i));
    }
    if whole < values.len() {
        let mut rest = [0u16; 16];
        let left = values.len() - whole;
        F16::load_part(values.as_ptr().add(whole), left).store_bf16(rest.as_mut_ptr());
        std::ptr::copy_nonoverlapping(rest.as_ptr(), target.add(whole), left);
    }
}

pub unsafe fn store_bf16(values: &[f32], target: *mut u8) {
    for (i, x) in values.iter().enumerate() {
        (target as *mut u16).add(i).write_unaligned(to_bf16(*x));
    }
}

/// Nearest E4M3, halves to even, beyond 448 the largest.
fn to_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let size = x.abs().min(448.0);
    if size < 1.0 / 64.0 {
        // subnormal: whole multiples of 2^-9; adding 2^23 rounds to whole numbers, halves to even
        let units = (size * 512.0 + 8_388_608.0) - 8_388_608.0;
        return sign | units as u8;
    }
    let bits = size.to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

pub unsafe fn store_fp8(values: &[f32], rope: usize, codes: *mut u8, scales: *mut u8) {
    let nope = values.len() - rope;
    let tiles = nope.div_ceil(TILE);
    std::ptr::write_bytes(scales.add(tiles), 0, tiles.next_multiple_of(8) - tiles);
    for (number, tile) in values[..nope].chunks(TILE).enumerate() {
        let most = amax(tile) / 448.0;
        let scale = power_at_least(if most < 1e-4 { 1e-4 } else { most });
        *scales.add(number) = scale;
        let share = 1.0 / power(scale);
        for (i, x) in tile.iter().enumerate() {
            *codes.add(number * TILE + i) = to_e4m3(x * share);
        }
    }
    store_bf16(&values[nope..], codes.add(nope));
}

/// Nearest E2M1, halves to the even code.
fn to_e2m1(x: f32) -> u8 {
    let size = x.abs();
    let code = u8::from(size > 0.25)
        + u8::from(size >= 0.75)
        + u8::from(size > 1.25)
        + u8::from(size >= 1.75)
        + u8::from(size > 2.5)
        + u8::from(size >= 3.5)
        + u8::from(size > 5.0);
    code | if x.is_sign_negative() { 8 } else { 0 }
}

pub unsafe fn store_fp4(values: &[f32], codes: *mut u8, scales: *mut u8) {
    const SMALLEST: f32 = 6.0 * f32::MIN_POSITIVE;
    for (number, block) in values.chunks(BLOCK).enumerate() {
        let most = amax(block);
        let scale = power_at_least((if most < SMALLEST { SMALLEST } else { most }) / 6.0);
        *scales.add(number) = scale;
        let share = 1.0 / power(scale);
        for (i, pair) in block.chunks(2).enumerate() {
            let byte = to_e2m1(pair[0] * share) | to_e2m1(pair[1] * share) << 4;
            *codes.add(number * BLOCK / 2 + i) = byte;
        }
    }
}

/// Sylvester's matrix over sqrt(n) times the vector, in place.
pub fn hadamard(values: &mut [f32]) {
    let n = values.len();
    let mut half = 1;
    while half < n {
        for start in (0..n).step_by(2 * half) {
            for i in start..start + half {
                let (a, b) = (values[i], values[i + half]);
                values[i] = a + b;
                values[i + half] = a - b;
            }
        }
        half *= 2;
    }
    let share = 1.0 / (n as f32).sqrt();
    values.iter_mut().for_each(|x| *x *= share);
}
