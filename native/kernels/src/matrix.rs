//! Weight matrices in their stored form, times a few vectors; see `kernels/weights.py`.
//!
//! A call of up to `FEW` vectors multiplies them with the rows as they lie (`few`), a larger one with
//! rows laid out for it (`panels`). In either, each sum is taken in an order that depends on the
//! matrix alone, so a vector's product has the same bits whatever other vectors share the call.

use crate::few::times_few;
use crate::keys::{BF16, FP32, FP4, FP8};
use crate::packing::{power, BLOCK};
use crate::panels::times_panels;
use crate::simd::{F16, F8};
use crate::threads::{split, Shared};

/// FP8 whose scales are fp32; the other kinds are those of cached vectors.
pub const FP8_FP32: usize = 4;
/// Rows and columns of an FP8 matrix under one scale.
const TILE: usize = 128;
/// For more vectors in a call it pays to lay the matrix out anew.
pub const FEW: usize = 16;

/// Rows of numbers or codes, contiguous; `kind` as numbered in `kernels/native.py`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Matrix {
    pub data: *const u8,
    pub scales: *const u8,
    pub kind: usize,
    /// Rows in front of this part, in the matrix whose tiles the scales belong to.
    pub first: usize,
}

/// Vectors as rows: where the first begins and how far apart they are.
#[derive(Clone, Copy)]
pub struct Vectors {
    pub x: *const f32,
    pub x_stride: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    pub count: usize,
    /// The call has more than `FEW`, whether or not they are all here.
    pub many: bool,
    /// The model computes in bf16: numbers are rounded to it in front of a product, sums are fp32.
    pub narrow: bool,
}

/// What products need beside their inputs, kept between calls.
#[derive(Default)]
pub struct Work {
    /// Vectors as the product takes them.
    pub vectors: Vec<f32>,
    pub panels: Vec<f32>,
    /// Rows that are decoded on the way into a panel.
    pub rows: Vec<f32>,
}

/// The first `count` numbers, what they held before being of no account.
pub fn room(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    &mut buffer[..count]
}

impl Matrix {
    pub fn exists(&self) -> bool {
        !self.data.is_null()
    }

    pub fn row_bytes(&self, inputs: usize) -> usize {
        match self.kind {
            FP32 => 4 * inputs,
            BF16 => 2 * inputs,
            FP4 => inputs / 2,
            _ => inputs,
        }
    }

    /// The matrix from row `row` on, rows being `inputs` wide.
    pub unsafe fn from(self, row: usize, inputs: usize) -> Matrix {
        let data = self.data.add(row * self.row_bytes(inputs));
        match self.kind {
            FP4 => Matrix { data, scales: self.scales.add(row * (inputs / BLOCK)), ..self },
            _ => Matrix { data, first: self.first + row, ..self },
        }
    }

    /// Matrix `number` of a stack.
    pub unsafe fn part(self, number: usize, outputs: usize, inputs: usize) -> Matrix {
        let tiles = number * outputs.div_ceil(TILE) * inputs.div_ceil(TILE);
        let scale_bytes = match self.kind {
            FP8 => tiles,
            FP8_FP32 => 4 * tiles,
            _ => return self.from(number * outputs, inputs),
        };
        let data = self.data.add(number * outputs * inputs);
        Matrix { data, scales: self.scales.add(scale_bytes), ..self }
    }

    /// out[v, i] = row_i . x[v] for `outputs` rows; `inputs` is a multiple of 8, of 32 for FP4.
    pub unsafe fn times(self, v: Vectors, outputs: usize, inputs: usize, work: &mut Work) {
        if v.many {
            times_panels(self, v, outputs, inputs, work);
        } else {
            times_few(self, v, outputs, inputs, work);
        }
    }

    /// Whether vectors are rounded to bf16 in front of this matrix.
    pub fn rounds(&self, v: &Vectors) -> bool {
        v.narrow && self.kind != FP32
    }

    /// Where the scales of a row begin.
    #[inline(always)]
    pub unsafe fn row_scales<const KIND: usize>(self, row: usize, inputs: usize) -> *const u8 {
        let tiles = (self.first + row) / TILE * inputs.div_ceil(TILE);
        self.scales.add(match KIND {
            FP4 => row * (inputs / BLOCK),
            FP8 => tiles,
            _ => 4 * tiles,
        })
    }

    /// One row as fp32.
    pub unsafe fn row(self, row: usize, out: *mut f32, inputs: usize) {
        let codes = self.data.add(row * self.row_bytes(inputs));
        let mut i = 0;
        while i + 16 <= inputs {
            let lanes = match self.kind {
                FP32 => F16::load((codes as *const f32).add(i)),
                BF16 => F16::load_bf16((codes as *const u16).add(i)),
                FP4 => F16::load_e2m1(codes.add(i / 2)),
                _ => F16::load_e4m3(codes.add(i)),
            };
            let scale = self.scale_at(row, i, inputs);
            if scale == 1.0 { lanes } else { lanes.mul(F16::splat(scale)) }.store(out.add(i));
            i += 16;
        }
        if i < inputs {
            let lanes = match self.kind {
                FP32 => F8::load((codes as *const f32).add(i)),
                BF16 => F8::load_bf16((codes as *const u16).add(i)),
                FP4 => F8::load_e2m1(codes.add(i / 2)),
                _ => F8::load_e4m3(codes.add(i)),
            };
            lanes.mul(F8::splat(self.scale_at(row, i, inputs))).store(out.add(i));
        }
        if matches!(self.kind, FP8 | FP8_FP32) {
            for k in (0..inputs).filter(|&k| *codes.add(k) & 0x7f == 0x7f) {
                *out.add(k) = f32::NAN;
            }
        }
    }

    /// What scales a number of a row.
    #[inline(always)]
    unsafe fn scale_at(self, row: usize, i: usize, inputs: usize) -> f32 {
        match self.kind {
            FP32 | BF16 => 1.0,
            FP4 => scale::<FP4>(self.row_scales::<FP4>(row, inputs), i / BLOCK),
            FP8 => scale::<FP8>(self.row_scales::<FP8>(row, inputs), i / BLOCK),
            _ => scale::<FP8_FP32>(self.row_scales::<FP8_FP32>(row, inputs), i / BLOCK),
        }
    }
}

/// The scale of a row's block.
#[inline(always)]
pub unsafe fn scale<const KIND: usize>(scales: *const u8, block: usize) -> f32 {
    match KIND {
        FP4 => power(*scales.add(block)),
        FP8 => power(*scales.add(block / (TILE / BLOCK))),
        _ => (scales as *const f32).add(block / (TILE / BLOCK)).read_unaligned(),
    }
}

/// Rows times a matrix.
#[repr(C)]
pub struct ProductArgs {
    pub matrix: Matrix,
    pub x: *const f32,
    pub out: *mut f32,
    pub rows: usize,
    pub outputs: usize,
    pub inputs: usize,
    pub threads: usize,
}

unsafe impl Sync for ProductArgs {}

pub unsafe fn product(a: &ProductArgs) {
    let out = Shared(a.out);
    split(a.outputs, a.threads, |begin, end| unsafe {
        let v = Vectors {
            x: a.x,
            x_stride: a.inputs,
            out: out.get().add(begin),
            out_stride: a.outputs,
            count: a.rows,
            many: a.rows > FEW,
            narrow: false,
        };
        a.matrix.from(begin, a.inputs).times(v, end - begin, a.inputs, &mut Work::default());
    });
}

/// A matrix's values, fp32 [outputs, inputs].
#[repr(C)]
pub struct DecodeArgs {
    pub matrix: Matrix,
    pub out: *mut f32,
    pub outputs: usize,
    pub inputs: usize,
    pub threads: usize,
}

unsafe impl Sync for DecodeArgs {}

pub unsafe fn decode(a: &DecodeArgs) {
    let out = Shared(a.out);
    split(a.outputs, a.threads, |begin, end| {
        for row in begin..end {
            unsafe { a.matrix.row(row, out.get().add(row * a.inputs), a.inputs) };
        }
    });
}
