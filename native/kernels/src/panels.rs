//! Many vectors times a matrix: its rows are laid out in panels of sixteen, so that one load serves
//! sixteen sums, and as many vectors share it as registers hold sums.
//!
//! A sum runs over the inputs in their order. In bf16 a panel holds pairs of inputs.

#[cfg(target_feature = "avx512bf16")]
use crate::keys::FP4;
use crate::keys::{BF16, FP32};
use crate::matrix::{room, Matrix, Vectors, Work};
use crate::packing::narrow;
use crate::simd::{F16, IS_WIDE};

/// Rows to a panel.
pub const PANEL: usize = 16;
/// Panels and vectors of a tile: its sums fill the registers.
const PANELS: usize = if IS_WIDE { 2 } else { 1 };
const VECTORS: usize = if IS_WIDE { 8 } else { 6 };

pub unsafe fn times_panels(m: Matrix, v: Vectors, outputs: usize, inputs: usize, work: &mut Work) {
    let rounds = m.rounds(&v);
    let steps = if rounds { inputs / 2 } else { inputs };
    let (mut x, mut x_stride) = (v.x, v.x_stride);
    if rounds {
        let pairs = room(&mut work.vectors, v.count * steps);
        for number in 0..v.count {
            let from = std::slice::from_raw_parts(v.x.add(number * v.x_stride), inputs);
            narrow(from, pairs[number * steps..].as_mut_ptr());
        }
        (x, x_stride) = (pairs.as_ptr(), steps);
    }
    for base in (0..outputs).step_by(PANELS * PANEL) {
        let rows = (outputs - base).min(PANELS * PANEL);
        let panels = room(&mut work.panels, PANELS * PANEL * steps);
        for (number, panel) in panels.chunks_mut(PANEL * steps).enumerate() {
            let first = number * PANEL;
            if first < rows {
                let count = (rows - first).min(PANEL);
                fill(m, base + first, count, inputs, rounds, &mut work.rows, panel);
            }
        }
        let (out, panels) = (v.out.add(base), panels.as_ptr());
        let v = Vectors { x, x_stride, out, ..v };
        match (rounds, rows > PANEL) {
            (true, true) => sweep::<true, PANELS>(v, panels, steps, rows),
            (true, false) => sweep::<true, 1>(v, panels, steps, rows),
            (false, true) => sweep::<false, PANELS>(v, panels, steps, rows),
            (false, false) => sweep::<false, 1>(v, panels, steps, rows),
        }
    }
}

/// One panel from up to sixteen rows; what is missing is 0.
unsafe fn fill(
    m: Matrix,
    first: usize,
    count: usize,
    inputs: usize,
    rounds: bool,
    decoded: &mut Vec<f32>,
    panel: &mut [f32],
) {
    let steps = panel.len() / PANEL;
    let as_it_lies = m.kind == if rounds { BF16 } else { FP32 };
    // sixteen rows, one of zeros, and one on its way to bf16
    let room = room(decoded, (PANEL + 1) * steps + inputs);
    room[PANEL * steps..(PANEL + 1) * steps].fill(0.0);
    let base = room.as_mut_ptr();
    let rows = std::array::from_fn(|i| {
        if i >= count {
            base.add(PANEL * steps) as *const f32
        } else if as_it_lies {
            m.data.add((first + i) * m.row_bytes(inputs)) as *const f32
        } else if rounds && decodes(m, first + i, inputs, base.add(i * steps)) {
            base.add(i * steps)
        } else if rounds {
            let wide = base.add((PANEL + 1) * steps);
            m.row(first + i, wide, inputs);
            let wide = std::slice::from_raw_parts(wide, inputs);
            narrow(wide, base.add(i * steps));
            base.add(i * steps)
        } else {
            m.row(first + i, base.add(i * steps), inputs);
            base.add(i * steps)
        }
    });
    lay_out(rows, steps, panel.as_mut_ptr());
}

/// Decodes a row straight to bf16, where there is a way.
unsafe fn decodes(m: Matrix, row: usize, inputs: usize, out: *mut f32) -> bool {
    #[cfg(target_feature = "avx512bf16")]
    if m.kind == FP4 {
        return crate::narrow::decode_row(m, row, inputs, out);
    }
    let _ = (m, row, inputs, out);
    false
}

/// Sixteen rows of `steps` 32-bit words as columns, [steps, 16].
#[inline(always)]
pub unsafe fn lay_out(rows: [*const f32; PANEL], steps: usize, panel: *mut f32) {
    for k in (0..steps).step_by(PANEL) {
        let count = (steps - k).min(PANEL);
        let columns =
            F16::transpose(std::array::from_fn(|i| F16::load_part(rows[i].add(k), count)));
        for (i, column) in columns.into_iter().enumerate().take(count) {
            column.store(panel.add((k + i) * PANEL));
        }
    }
}

unsafe fn sweep<const NARROW: bool, const P: usize>(
    v: Vectors,
    panels: *const f32,
    steps: usize,
    rows: usize,
) {
    let mut at = 0;
    macro_rules! tiles {
        ($vectors:expr) => {
            while at + $vectors <= v.count {
                tile::<NARROW, { $vectors }, P>(v, at, panels, steps, rows);
                at += $vectors;
            }
        };
    }
    tiles!(VECTORS);
    tiles!(4);
    tiles!(1);
}

#[inline(always)]
unsafe fn tile<const NARROW: bool, const V: usize, const P: usize>(
    v: Vectors,
    first: usize,
    panels: *const f32,
    steps: usize,
    rows: usize,
) {
    let x: [*const f32; V] = std::array::from_fn(|n| v.x.add((first + n) * v.x_stride));
    let mut acc = [[F16::zero(); P]; V];
    for k in 0..steps {
        let w: [F16; P] = std::array::from_fn(|p| F16::load(panels.add((p * steps + k) * PANEL)));
        for (n, sums) in acc.iter_mut().enumerate() {
            let x = F16::splat(*x[n].add(k));
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = if NARROW { sum.dot(x, w) } else { sum.fma(x, w) };
            }
        }
    }
    for (n, sums) in acc.into_iter().enumerate() {
        let out = v.out.add((first + n) * v.out_stride);
        for (p, sum) in sums.into_iter().enumerate() {
            sum.store_part(out.add(p * PANEL), (rows - p * PANEL).min(PANEL));
        }
    }
}
