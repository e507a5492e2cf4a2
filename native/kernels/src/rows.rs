//! Norms, rotations and gates, a row at a time; see `kernels/rows.py`.

use crate::simd::{dot, F8};
use crate::threads::{split, Shared};

/// 1 / sqrt(mean(x^2) + eps)
pub unsafe fn scale_of(x: *const f32, n: usize, eps: f32) -> f32 {
    1.0 / (dot(x, x, n) / n as f32 + eps).sqrt()
}

/// RMS norm (unless eps is negative), then rotation of the last dims (unless phases are null).
#[repr(C)]
pub struct NormRotateArgs {
    pub x: *const f32,
    /// [width], or null for no weight.
    pub weight: *const f32,
    /// cos, sin interleaved, [phase rows, rope].
    pub phases: *const f32,
    pub out: *mut f32,
    pub rows: usize,
    pub width: usize,
    pub rope: usize,
    /// Rows that share a phase: the heads of a token.
    pub heads: usize,
    /// Tokens after which the phases repeat.
    pub tokens: usize,
    pub threads: usize,
    pub eps: f32,
    /// 1, or -1 to turn back.
    pub direction: f32,
}

unsafe impl Sync for NormRotateArgs {}

pub unsafe fn norm_rotate(a: &NormRotateArgs) {
    let out = Shared(a.out);
    split(a.rows, a.threads, |begin, end| {
        for row in begin..end {
            unsafe { norm_rotate_row(a, row, out.get().add(row * a.width)) };
        }
    });
}

unsafe fn norm_rotate_row(a: &NormRotateArgs, row: usize, out: *mut f32) {
    let x = a.x.add(row * a.width);
    let scale = F8::splat(if a.eps < 0.0 { 1.0 } else { scale_of(x, a.width, a.eps) });
    for i in (0..a.width).step_by(8) {
        let mut value = F8::load(x.add(i)).mul(scale);
        if !a.weight.is_null() {
            value = value.mul(F8::load(a.weight.add(i)));
        }
        value.store(out.add(i));
    }
    if a.phases.is_null() {
        return;
    }
    let phase = a.phases.add(row / a.heads % a.tokens * a.rope);
    let tail = out.add(a.width - a.rope);
    for i in (0..a.rope).step_by(2) {
        let (cos, sin) = (*phase.add(i), *phase.add(i + 1) * a.direction);
        let (even, odd) = (*tail.add(i), *tail.add(i + 1));
        *tail.add(i) = even * cos - odd * sin;
        *tail.add(i + 1) = even * sin + odd * cos;
    }
}

/// out = weight[row] * silu(min(gate, limit)) * clamp(up, -limit, limit)
#[repr(C)]
pub struct GateArgs {
    pub gate: *const f32,
    pub up: *const f32,
    /// [rows], or null for 1.
    pub weights: *const f32,
    pub out: *mut f32,
    pub rows: usize,
    pub width: usize,
    pub threads: usize,
    pub limit: f32,
}

unsafe impl Sync for GateArgs {}

pub unsafe fn gate(a: &GateArgs) {
    let out = Shared(a.out);
    split(a.rows, a.threads, |begin, end| {
        for row in begin..end {
            let weight = unsafe { if a.weights.is_null() { 1.0 } else { *a.weights.add(row) } };
            for i in (row * a.width..(row + 1) * a.width).step_by(8) {
                unsafe {
                    let (gate, up) = (F8::load(a.gate.add(i)), F8::load(a.up.add(i)));
                    gated(gate, up, a.limit).mul(F8::splat(weight)).store(out.get().add(i));
                }
            }
        }
    });
}

#[inline(always)]
pub fn gated(gate: F8, up: F8, limit: f32) -> F8 {
    let gate = gate.min(F8::splat(limit));
    gate.mul(gate.sigmoid()).mul(up.min(F8::splat(limit)).max(F8::splat(-limit)))
}
