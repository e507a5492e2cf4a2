//! A weight matrix in its stored form, times one vector.

use crate::keys::FP32;
use crate::simd::F8;

/// Rows of numbers, contiguous; `kind` as numbered in `kernels/native.py`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Matrix {
    pub data: *const u8,
    pub kind: usize,
}

impl Matrix {
    pub fn exists(&self) -> bool {
        !self.data.is_null()
    }

    /// The matrix from row `row` on, rows being `inputs` wide.
    pub unsafe fn from(self, row: usize, inputs: usize) -> Matrix {
        let bytes = if self.kind == FP32 { 4 } else { 2 };
        Matrix { data: self.data.add(row * inputs * bytes), ..self }
    }

    /// out[i] = row_i . x for `outputs` rows; `inputs` is a multiple of 8.
    pub unsafe fn times(self, x: *const f32, out: *mut f32, outputs: usize, inputs: usize) {
        match self.kind {
            FP32 => product(x, out, outputs, inputs, |i| F8::load((self.data as *const f32).add(i))),
            _ => product(x, out, outputs, inputs, |i| {
                F8::load_bf16((self.data as *const u16).add(i))
            }),
        }
    }

    /// One row as fp32.
    pub unsafe fn row(self, row: usize, out: *mut f32, inputs: usize) {
        let from = self.from(row, inputs);
        for i in (0..inputs).step_by(8) {
            let lanes = match self.kind {
                FP32 => F8::load((from.data as *const f32).add(i)),
                _ => F8::load_bf16((from.data as *const u16).add(i)),
            };
            lanes.store(out.add(i));
        }
    }
}

#[inline(always)]
unsafe fn product(
    x: *const f32,
    out: *mut f32,
    outputs: usize,
    inputs: usize,
    load: impl Fn(usize) -> F8 + Copy,
) {
    let mut row = 0;
    while row + 4 <= outputs {
        rows::<4>(x, out.add(row), row * inputs, inputs, load);
        row += 4;
    }
    while row < outputs {
        rows::<1>(x, out.add(row), row * inputs, inputs, load);
        row += 1;
    }
}

#[inline(always)]
unsafe fn rows<const R: usize>(
    x: *const f32,
    out: *mut f32,
    first: usize,
    inputs: usize,
    load: impl Fn(usize) -> F8,
) {
    // two sums a row hide the latency of a multiply-add
    let mut acc = [[F8::zero(); 2]; R];
    let mut i = 0;
    while i + 16 <= inputs {
        let parts = [F8::load(x.add(i)), F8::load(x.add(i + 8))];
        for (r, sums) in acc.iter_mut().enumerate() {
            let at = first + r * inputs + i;
            sums[0] = sums[0].fma(parts[0], load(at));
            sums[1] = sums[1].fma(parts[1], load(at + 8));
        }
        i += 16;
    }
    if i < inputs {
        let part = F8::load(x.add(i));
        for (r, sums) in acc.iter_mut().enumerate() {
            sums[0] = sums[0].fma(part, load(first + r * inputs + i));
        }
    }
    for (r, sums) in acc.iter().enumerate() {
        *out.add(r) = sums[0].add(sums[1]).sum();
    }
}
