//! Weight matrices in their stored form, times a few vectors; see `kernels/weights.py`.
//!
//! Each sum is taken in an order that depends on the matrix alone, so a vector's product has the same
//! bits whatever other vectors share the call.

use crate::keys::{BF16, FP32, FP4, FP8};
use crate::packing::{power, BLOCK};
use crate::simd::F8;
use crate::threads::{split, Shared};

/// FP8 whose scales are fp32; the other kinds are those of cached vectors.
pub const FP8_FP32: usize = 4;
/// Rows and columns of an FP8 matrix under one scale.
const TILE: usize = 128;
/// Vectors that share one reading of the matrix.
const VECTORS: usize = 4;

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
}

impl Matrix {
    pub fn exists(&self) -> bool {
        !self.data.is_null()
    }

    fn row_bytes(&self, inputs: usize) -> usize {
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
    pub unsafe fn times(self, v: Vectors, outputs: usize, inputs: usize) {
        if matches!(self.kind, FP32 | BF16) {
            for_vectors(v, |v| self.times_plain(v, outputs, inputs));
            return;
        }
        // as whole blocks, in the order in which a block of codes is decoded
        let padded = inputs.next_multiple_of(BLOCK);
        let mut x = vec![0.0f32; v.count * padded];
        for number in 0..v.count {
            let from = std::slice::from_raw_parts(v.x.add(number * v.x_stride), inputs);
            let to = &mut x[number * padded..][..padded];
            to[..inputs].copy_from_slice(from);
            if self.kind == FP4 {
                to.chunks_mut(BLOCK).for_each(part_evens);
            }
        }
        let v = Vectors { x: x.as_ptr(), x_stride: padded, ..v };
        match self.kind {
            FP4 => for_vectors(v, |v| self.times_codes::<FP4>(v, outputs, inputs)),
            FP8 => for_vectors(v, |v| self.times_codes::<FP8>(v, outputs, inputs)),
            _ => for_vectors(v, |v| self.times_codes::<FP8_FP32>(v, outputs, inputs)),
        }
    }

    unsafe fn times_plain(self, v: Vectors, outputs: usize, inputs: usize) {
        let mut row = 0;
        macro_rules! rows {
            ($rows:literal, $vectors:literal) => {
                while row + $rows <= outputs {
                    match self.kind {
                        FP32 => self.plain::<FP32, $rows, $vectors>(v, row, inputs),
                        _ => self.plain::<BF16, $rows, $vectors>(v, row, inputs),
                    }
                    row += $rows;
                }
            };
        }
        match v.count {
            1 => {
                rows!(4, 1);
                rows!(1, 1);
            }
            2 => {
                rows!(2, 2);
                rows!(1, 2);
            }
            3 => {
                rows!(2, 3);
                rows!(1, 3);
            }
            _ => rows!(1, 4),
        }
    }

    #[inline(always)]
    unsafe fn plain<const KIND: usize, const R: usize, const V: usize>(
        self,
        v: Vectors,
        row: usize,
        inputs: usize,
    ) {
        let load = |r: usize, i: usize| {
            let at = (row + r) * inputs + i;
            if KIND == FP32 {
                F8::load((self.data as *const f32).add(at))
            } else {
                F8::load_bf16((self.data as *const u16).add(at))
            }
        };
        // two sums a row hide the latency of a multiply-add
        let mut acc = [[[F8::zero(); 2]; V]; R];
        let mut i = 0;
        while i + 16 <= inputs {
            for r in 0..R {
                let w = [load(r, i), load(r, i + 8)];
                for n in 0..V {
                    let x = v.x.add(n * v.x_stride + i);
                    acc[r][n][0] = acc[r][n][0].fma(F8::load(x), w[0]);
                    acc[r][n][1] = acc[r][n][1].fma(F8::load(x.add(8)), w[1]);
                }
            }
            i += 16;
        }
        for r in 0..R {
            for n in 0..V {
                let mut sums = acc[r][n];
                if i < inputs {
                    sums[0] = sums[0].fma(F8::load(v.x.add(n * v.x_stride + i)), load(r, i));
                }
                *v.out.add(n * v.out_stride + row + r) = sums[0].add(sums[1]).sum();
            }
        }
    }

    unsafe fn times_codes<const KIND: usize>(self, v: Vectors, outputs: usize, inputs: usize) {
        let mut row = 0;
        macro_rules! rows {
            ($rows:literal, $vectors:literal) => {
                while row + $rows <= outputs {
                    self.codes::<KIND, $rows, $vectors>(v, row, inputs);
                    row += $rows;
                }
            };
        }
        match v.count {
            1 => {
                rows!(4, 1);
                rows!(1, 1);
            }
            2 => {
                rows!(2, 2);
                rows!(1, 2);
            }
            3 => rows!(1, 3),
            _ => rows!(1, 4),
        }
    }

    #[inline(always)]
    unsafe fn codes<const KIND: usize, const R: usize, const V: usize>(
        self,
        v: Vectors,
        row: usize,
        inputs: usize,
    ) {
        let row_bytes = self.row_bytes(inputs);
        let scales: [*const u8; R] =
            std::array::from_fn(|r| self.row_scales::<KIND>(row + r, inputs));
        let mut acc = [[F8::zero(); V]; R];
        let mut broken = [false; R];
        let whole = inputs / BLOCK;
        for block in 0..inputs.div_ceil(BLOCK) {
            for r in 0..R {
                let codes = self.data.add((row + r) * row_bytes);
                let scale = F8::splat(scale::<KIND>(scales[r], block));
                let w = if KIND == FP4 {
                    F8::load_e2m1_block(codes.add(block * BLOCK / 2))
                } else if block < whole {
                    broken[r] |= F8::has_e4m3_nan(codes.add(block * BLOCK));
                    F8::load_e4m3_block(codes.add(block * BLOCK))
                } else {
                    let mut rest = [0u8; BLOCK];
                    let from = codes.add(block * BLOCK);
                    std::ptr::copy_nonoverlapping(from, rest.as_mut_ptr(), inputs % BLOCK);
                    broken[r] |= F8::has_e4m3_nan(rest.as_ptr());
                    F8::load_e4m3_block(rest.as_ptr())
                };
                for n in 0..V {
                    let x = v.x.add(n * v.x_stride + block * BLOCK);
                    let mut sum = F8::load(x).mul(w[0]);
                    for (k, part) in w.iter().enumerate().skip(1) {
                        sum = sum.fma(F8::load(x.add(8 * k)), *part);
                    }
                    acc[r][n] = acc[r][n].fma(sum, scale);
                }
            }
        }
        let unit = if KIND == FP4 { F8::E2M1_BLOCK_UNIT } else { F8::E4M3_BLOCK_UNIT };
        for n in 0..V {
            let sums = F8::sums(std::array::from_fn(|r| acc[r % R][n]));
            for r in 0..R {
                let sum = if broken[r] { f32::NAN } else { sums[r] * unit };
                *v.out.add(n * v.out_stride + row + r) = sum;
            }
        }
    }

    /// Where the scales of a row begin.
    #[inline(always)]
    unsafe fn row_scales<const KIND: usize>(self, row: usize, inputs: usize) -> *const u8 {
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
        for i in (0..inputs).step_by(8) {
            let lanes = match self.kind {
                FP32 => F8::load((codes as *const f32).add(i)),
                BF16 => F8::load_bf16((codes as *const u16).add(i)),
                FP4 => {
                    let scale = scale::<FP4>(self.row_scales::<FP4>(row, inputs), i / BLOCK);
                    F8::load_e2m1(codes.add(i / 2)).mul(F8::splat(scale))
                }
                FP8 => {
                    let scale = scale::<FP8>(self.row_scales::<FP8>(row, inputs), i / BLOCK);
                    F8::load_e4m3(codes.add(i)).mul(F8::splat(scale))
                }
                _ => {
                    let scales = self.row_scales::<FP8_FP32>(row, inputs);
                    let scale = scale::<FP8_FP32>(scales, i / BLOCK);
                    F8::load_e4m3(codes.add(i)).mul(F8::splat(scale))
                }
            };
            lanes.store(out.add(i));
            if matches!(self.kind, FP8 | FP8_FP32) {
                for k in (i..i + 8).filter(|&k| *codes.add(k) & 0x7f == 0x7f) {
                    *out.add(k) = f32::NAN;
                }
            }
        }
    }
}

/// The scale of a row's block.
#[inline(always)]
unsafe fn scale<const KIND: usize>(scales: *const u8, block: usize) -> f32 {
    match KIND {
        FP4 => power(*scales.add(block)),
        FP8 => power(*scales.add(block / (TILE / BLOCK))),
        _ => (scales as *const f32).add(block / (TILE / BLOCK)).read_unaligned(),
    }
}

/// Even numbers of a block first, then the odd ones: as nibbles lie in bytes.
fn part_evens(block: &mut [f32]) {
    let mut sorted = [0.0; BLOCK];
    for (i, pair) in block.chunks(2).enumerate() {
        sorted[i] = pair[0];
        sorted[i + BLOCK / 2] = pair[1];
    }
    block.copy_from_slice(&sorted);
}

/// Calls `work` for a few vectors at a time.
unsafe fn for_vectors(v: Vectors, work: impl Fn(Vectors)) {
    for begin in (0..v.count).step_by(VECTORS) {
        work(Vectors {
            x: v.x.add(begin * v.x_stride),
            out: v.out.add(begin * v.out_stride),
            count: VECTORS.min(v.count - begin),
            ..v
        });
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
        };
        a.matrix.from(begin, a.inputs).times(v, end - begin, a.inputs);
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
