//! A matrix as it lies, times up to four vectors at a time: for decoding, where the way of the
//! weights from memory is what costs.

use crate::keys::{BF16, FP32, FP4, FP8};
use crate::matrix::{room, scale, Matrix, Vectors, Work, FP8_FP32};
use crate::packing::{round_bf16, BLOCK};
use crate::simd::{F16, F8};

/// Vectors that share one reading of the matrix.
const VECTORS: usize = 4;

pub unsafe fn times_few(m: Matrix, v: Vectors, outputs: usize, inputs: usize, work: &mut Work) {
    #[cfg(target_feature = "avx512bf16")]
    if m.rounds(&v) && matches!(m.kind, BF16 | FP4) {
        return crate::narrow::times_few(m, v, outputs, inputs, work);
    }
    if m.kind == FP32 || (m.kind == BF16 && !v.narrow) {
        return for_vectors(v, |v| times_plain(m, v, outputs, inputs));
    }
    // as whole blocks, in the order in which a block of codes is decoded
    let padded = inputs.next_multiple_of(BLOCK);
    let x = room(&mut work.vectors, v.count * padded);
    for number in 0..v.count {
        let from = std::slice::from_raw_parts(v.x.add(number * v.x_stride), inputs);
        let to = &mut x[number * padded..][..padded];
        to[..inputs].copy_from_slice(from);
        to[inputs..].fill(0.0);
        if v.narrow {
            to.iter_mut().for_each(|x| *x = round_bf16(*x));
        }
        if m.kind == FP4 {
            to.chunks_mut(BLOCK).for_each(part_evens);
        }
    }
    let v = Vectors { x: x.as_ptr(), x_stride: padded, ..v };
    match m.kind {
        BF16 => for_vectors(v, |v| times_plain(m, v, outputs, inputs)),
        FP4 => for_vectors(v, |v| times_codes::<FP4>(m, v, outputs, inputs)),
        FP8 => for_vectors(v, |v| times_codes::<FP8>(m, v, outputs, inputs)),
        _ => for_vectors(v, |v| times_codes::<FP8_FP32>(m, v, outputs, inputs)),
    }
}

/// Even numbers of a block first, then the odd ones: as nibbles lie in bytes.
pub fn part_evens(block: &mut [f32]) {
    let mut sorted = [0.0; BLOCK];
    for (i, pair) in block.chunks(2).enumerate() {
        sorted[i] = pair[0];
        sorted[i + BLOCK / 2] = pair[1];
    }
    block.copy_from_slice(&sorted);
}

/// Calls `work` for a few vectors at a time.
pub unsafe fn for_vectors(v: Vectors, work: impl Fn(Vectors)) {
    for begin in (0..v.count).step_by(VECTORS) {
        work(Vectors {
            x: v.x.add(begin * v.x_stride),
            out: v.out.add(begin * v.out_stride),
            count: VECTORS.min(v.count - begin),
            ..v
        });
    }
}

/// Calls a kernel of so many rows and vectors until no row is left. Eight sums at once hide the
/// latency of a multiply-add.
macro_rules! sweep {
    ($v:ident, $outputs:ident, |$row:ident, $r:ident, $n:ident| $call:expr) => {{
        let mut $row = 0;
        macro_rules! rows {
            ($rows:literal, $vectors:literal) => {
                while $row + $rows <= $outputs {
                    const $r: usize = $rows;
                    const $n: usize = $vectors;
                    $call;
                    $row += $rows;
                }
            };
        }
        match $v.count {
            1 => {
                rows!(8, 1);
                rows!(1, 1);
            }
            2 => {
                rows!(4, 2);
                rows!(1, 2);
            }
            3 => {
                rows!(2, 3);
                rows!(1, 3);
            }
            _ => {
                rows!(2, 4);
                rows!(1, 4);
            }
        }
    }};
}
#[cfg(target_feature = "avx512bf16")]
pub(crate) use sweep;

/// Writes the sums of R rows and V vectors, each taken in the same order whatever R and V are.
#[inline(always)]
pub unsafe fn write<const R: usize, const V: usize>(
    acc: [[F16; V]; R],
    v: Vectors,
    row: usize,
    finish: impl Fn(usize, f32) -> f32,
) {
    let sums = F16::sums(std::array::from_fn(|i| acc[i / V % R][i % V]));
    for r in 0..R {
        for n in 0..V {
            *v.out.add(n * v.out_stride + row + r) = finish(r, sums[r * V + n]);
        }
    }
}

unsafe fn times_plain(m: Matrix, v: Vectors, outputs: usize, inputs: usize) {
    if m.kind == FP32 {
        sweep!(v, outputs, |row, R, V| plain::<FP32, R, V>(m, v, row, inputs));
    } else {
        sweep!(v, outputs, |row, R, V| plain::<BF16, R, V>(m, v, row, inputs));
    }
}

#[inline(always)]
unsafe fn plain<const KIND: usize, const R: usize, const V: usize>(
    m: Matrix,
    v: Vectors,
    row: usize,
    inputs: usize,
) {
    let mut acc = [[F16::zero(); V]; R];
    let mut i = 0;
    while i + 16 <= inputs {
        for (r, sums) in acc.iter_mut().enumerate() {
            let at = (row + r) * inputs + i;
            let w = if KIND == FP32 {
                F16::load((m.data as *const f32).add(at))
            } else {
                F16::load_bf16((m.data as *const u16).add(at))
            };
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = sum.fma(F16::load(v.x.add(n * v.x_stride + i)), w);
            }
        }
        i += 16;
    }
    if i < inputs {
        for (r, sums) in acc.iter_mut().enumerate() {
            let at = (row + r) * inputs + i;
            let w = if KIND == FP32 {
                F8::load((m.data as *const f32).add(at))
            } else {
                F8::load_bf16((m.data as *const u16).add(at))
            };
            let w = w.to_array();
            for (n, sum) in sums.iter_mut().enumerate() {
                let x = F16::load_part(v.x.add(n * v.x_stride + i), 8);
                *sum = sum.fma(x, F16::load_part(w.as_ptr(), 8));
            }
        }
    }
    write(acc, v, row, |_, sum| sum);
}

unsafe fn times_codes<const KIND: usize>(m: Matrix, v: Vectors, outputs: usize, inputs: usize) {
    sweep!(v, outputs, |row, R, V| codes::<KIND, R, V>(m, v, row, inputs));
}

#[inline(always)]
unsafe fn codes<const KIND: usize, const R: usize, const V: usize>(
    m: Matrix,
    v: Vectors,
    row: usize,
    inputs: usize,
) {
    let row_bytes = m.row_bytes(inputs);
    let scales: [*const u8; R] = std::array::from_fn(|r| m.row_scales::<KIND>(row + r, inputs));
    let mut acc = [[F8::zero(); V]; R];
    let mut broken = [false; R];
    let whole = inputs / BLOCK;
    for block in 0..inputs.div_ceil(BLOCK) {
        for r in 0..R {
            let codes = m.data.add((row + r) * row_bytes);
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
    let sums = acc.map(|row| row.map(|sum| F16::from_eights([sum, F8::zero()])));
    write(sums, v, row, |r, sum| if broken[r] { f32::NAN } else { sum * unit });
}
