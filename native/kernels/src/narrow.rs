//! As `few`, for a model that computes in bf16, on processors that multiply pairs of bf16.

use crate::few::{for_vectors, part_evens, sweep, write};
use crate::keys::{BF16, FP4};
use crate::matrix::{room, scale, Matrix, Vectors, Work};
use crate::packing::{narrow, BLOCK};
use crate::simd::F16;

pub unsafe fn times_few(m: Matrix, v: Vectors, outputs: usize, inputs: usize, work: &mut Work) {
    let mut block = [0.0f32; BLOCK];
    let pairs = inputs / 2;
    let x = room(&mut work.vectors, v.count * pairs);
    for number in 0..v.count {
        let from = std::slice::from_raw_parts(v.x.add(number * v.x_stride), inputs);
        let to = x[number * pairs..].as_mut_ptr();
        if m.kind == BF16 {
            narrow(from, to);
            continue;
        }
        for (i, part) in from.chunks(BLOCK).enumerate() {
            block.copy_from_slice(part);
            part_evens(&mut block);
            narrow(&block, to.add(BLOCK / 2 * i));
        }
    }
    let v = Vectors { x: x.as_ptr(), x_stride: pairs, ..v };
    if m.kind == BF16 {
        for_vectors(v, |v| sweep!(v, outputs, |row, R, V| plain::<R, V>(m, v, row, inputs)));
    } else {
        for_vectors(v, |v| sweep!(v, outputs, |row, R, V| codes::<R, V>(m, v, row, inputs)));
    }
}

/// A row of E2M1 codes as bf16; false where a scale would take it out of bf16's normal numbers.
pub unsafe fn decode_row(m: Matrix, row: usize, inputs: usize, out: *mut f32) -> bool {
    let codes = m.data.add(row * m.row_bytes(inputs));
    let scales = std::slice::from_raw_parts(m.row_scales::<FP4>(row, inputs), inputs / BLOCK);
    // sizes are 2^-1 to 6
    if scales.iter().any(|scale| !(2..=251).contains(scale)) {
        return false;
    }
    for (block, &scale) in scales.iter().enumerate() {
        let at = block * BLOCK / 2;
        F16::load_e2m1_scaled(codes.add(at), scale as i16 - 127).store(out.add(at));
    }
    true
}

#[inline(always)]
unsafe fn plain<const R: usize, const V: usize>(m: Matrix, v: Vectors, row: usize, inputs: usize) {
    let pairs = inputs / 2;
    let data = m.data as *const f32;
    let mut acc = [[F16::zero(); V]; R];
    let mut add = |i: usize, count: usize| {
        let x: [F16; V] =
            std::array::from_fn(|n| F16::load_part(v.x.add(n * v.x_stride + i), count));
        for (r, sums) in acc.iter_mut().enumerate() {
            let w = F16::load_part(data.add((row + r) * pairs + i), count);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = sum.dot(x, w);
            }
        }
    };
    let mut i = 0;
    while i + 16 <= pairs {
        add(i, 16);
        i += 16;
    }
    if i < pairs {
        add(i, pairs - i);
    }
    write(acc, v, row, |_, sum| sum);
}

#[inline(always)]
unsafe fn codes<const R: usize, const V: usize>(m: Matrix, v: Vectors, row: usize, inputs: usize) {
    let row_bytes = m.row_bytes(inputs);
    let scales: [*const u8; R] = std::array::from_fn(|r| m.row_scales::<FP4>(row + r, inputs));
    let mut acc = [[F16::zero(); V]; R];
    for block in 0..inputs / BLOCK {
        let x: [F16; V] =
            std::array::from_fn(|n| F16::load(v.x.add(n * v.x_stride + block * BLOCK / 2)));
        for (r, sums) in acc.iter_mut().enumerate() {
            let codes = m.data.add((row + r) * row_bytes + block * BLOCK / 2);
            let w = F16::load_e2m1_pairs(codes);
            let scale = F16::splat(scale::<FP4>(scales[r], block));
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = sum.fma(F16::zero().dot(x, w), scale);
            }
        }
    }
    write(acc, v, row, |_, sum| sum);
}
