//! Norms, rotations and gates, a row at a time; see `kernels/rows.py`.

use crate::simd::{dot, F16};
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
    let scale = F16::splat(if a.eps < 0.0 { 1.0 } else { scale_of(x, a.width, a.eps) });
    for i in (0..a.width).step_by(16) {
        let part = (a.width - i).min(16);
        let mut value = F16::load_part(x.add(i), part).mul(scale);
        if !a.weight.is_null() {
            value = value.mul(F16::load_part(a.weight.add(i), part));
        }
        value.store_part(out.add(i), part);
    }
    if a.phases.is_null() {
        return;
    }
    let phase = a.phases.add(row / a.heads % a.tokens * a.rope);
    let tail = out.add(a.width - a.rope);
    // an angle's other direction has the same cosine and the negative sine
    let signs: [f32; 16] = std::array::from_fn(|i| if i % 2 == 0 { 1.0 } else { a.direction });
    let signs = F16::load(signs.as_ptr());
    for i in (0..a.rope).step_by(16) {
        let part = (a.rope - i).min(16);
        let phases = F16::load_part(phase.add(i), part).mul(signs);
        F16::load_part(tail.add(i), part).turn(phases).store_part(tail.add(i), part);
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
            for i in (0..a.width).step_by(16) {
                let (at, part) = (row * a.width + i, (a.width - i).min(16));
                unsafe {
                    let gate = F16::load_part(a.gate.add(at), part);
                    let up = F16::load_part(a.up.add(at), part);
                    let hidden = gated(gate, up, a.limit).mul(F16::splat(weight));
                    hidden.store_part(out.get().add(at), part);
                }
            }
        }
    });
}

#[inline(always)]
fn gated(gate: F16, up: F16, limit: f32) -> F16 {
    let gate = gate.min(F16::splat(limit));
    gate.mul(gate.sigmoid()).mul(up.min(F16::splat(limit)).max(F16::splat(-limit)))
}
