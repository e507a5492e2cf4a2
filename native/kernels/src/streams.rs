//! Hyper-connections, a token at a time; see `kernels/streams.py`.

use crate::rows::scale_of;
use crate::simd::{dot, sigmoid, F8};
use crate::threads::{split, Shared};

/// At most so many residual streams.
pub const MOST: usize = 8;

/// One mHC site in front of its sublayer.
#[repr(C)]
pub struct MixArgs {
    pub x: *const f32,
    /// The streams times fn, [L, (2 + N) N], or null to have them computed here.
    pub mixed: *const f32,
    pub function: *const f32,
    pub base: *const f32,
    pub scale: *const f32,
    pub norm: *const f32,
    pub input: *mut f32,
    pub post: *mut f32,
    pub comb: *mut f32,
    pub tokens: usize,
    pub streams: usize,
    pub width: usize,
    pub iterations: usize,
    pub threads: usize,
    pub hc_eps: f32,
    pub norm_eps: f32,
}

unsafe impl Sync for MixArgs {}

pub unsafe fn mix(a: &MixArgs) {
    let (input, post, comb) = (Shared(a.input), Shared(a.post), Shared(a.comb));
    split(a.tokens, a.threads, |begin, end| {
        for t in begin..end {
            unsafe { mix_token(a, t, input.get(), post.get(), comb.get()) };
        }
    });
}

unsafe fn mix_token(a: &MixArgs, t: usize, input: *mut f32, post: *mut f32, comb: *mut f32) {
    let (n, d) = (a.streams, a.width);
    let x = a.x.add(t * n * d);
    let scale = scale_of(x, n * d, a.norm_eps);
    let mut m = [0.0f32; (2 + MOST) * MOST];
    for (i, value) in m[..(2 + n) * n].iter_mut().enumerate() {
        *value = scale
            * if a.mixed.is_null() {
                dot(x, a.function.add(i * n * d), n * d)
            } else {
                *a.mixed.add(t * (2 + n) * n + i)
            };
    }
    let mut pre = [0.0f32; MOST];
    for j in 0..n {
        pre[j] = sigmoid(m[j] * *a.scale + *a.base.add(j)) + a.hc_eps;
        *post.add(t * n + j) = 2.0 * sigmoid(m[n + j] * *a.scale.add(1) + *a.base.add(n + j));
    }
    let logits = &mut m[2 * n..(2 + n) * n];
    for (i, value) in logits.iter_mut().enumerate() {
        *value = *value * *a.scale.add(2) + *a.base.add(2 * n + i);
    }
    sinkhorn(logits, n, a.iterations, a.hc_eps);
    std::ptr::copy_nonoverlapping(logits.as_ptr(), comb.add(t * n * n), n * n);
    collapse(x, &pre, n, d, a.norm, a.norm_eps, input.add(t * d));
}

/// Behind the last layer: `function` is [N, N d] and only `input` is written.
pub unsafe fn read_out(a: &MixArgs) {
    let out = Shared(a.input);
    split(a.tokens, a.threads, |begin, end| {
        for t in begin..end {
            unsafe { read_out_token(a, t, out.get()) };
        }
    });
}

unsafe fn read_out_token(a: &MixArgs, t: usize, out: *mut f32) {
    let (n, d) = (a.streams, a.width);
    let x = a.x.add(t * n * d);
    let scale = scale_of(x, n * d, a.norm_eps);
    let mut pre = [0.0f32; MOST];
    for (j, weight) in pre[..n].iter_mut().enumerate() {
        let mixed = dot(x, a.function.add(j * n * d), n * d) * scale;
        *weight = sigmoid(mixed * *a.scale + *a.base.add(j)) + a.hc_eps;
    }
    collapse(x, &pre, n, d, a.norm, a.norm_eps, out.add(t * d));
}

/// The sublayer's normalised input.
unsafe fn collapse(
    x: *const f32,
    pre: &[f32; MOST],
    n: usize,
    d: usize,
    norm: *const f32,
    eps: f32,
    input: *mut f32,
) {
    for i in (0..d).step_by(8) {
        let mut sum = F8::zero();
        for (j, weight) in pre[..n].iter().enumerate() {
            sum = sum.fma(F8::splat(*weight), F8::load(x.add(j * d + i)));
        }
        sum.store(input.add(i));
    }
    let scale = F8::splat(scale_of(input, d, eps));
    for i in (0..d).step_by(8) {
        F8::load(input.add(i)).mul(scale).mul(F8::load(norm.add(i))).store(input.add(i));
    }
}

/// Softmax over k of [j, k], then sums over j and over k normalised in turn, ending on j.
fn sinkhorn(comb: &mut [f32], n: usize, iterations: usize, eps: f32) {
    for row in comb.chunks_mut(n) {
        let peak = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for value in row.iter_mut() {
            *value = (*value - peak).exp();
            total += *value;
        }
        row.iter_mut().for_each(|value| *value = *value / total + eps);
    }
    if n == 4 {
        return sinkhorn_4(comb, iterations, eps);
    }
    for iteration in 0..iterations {
        if iteration > 0 {
            for row in comb.chunks_mut(n) {
                let share = 1.0 / (row.iter().sum::<f32>() + eps);
                row.iter_mut().for_each(|value| *value *= share);
            }
        }
        for k in 0..n {
            let share = 1.0 / ((0..n).map(|j| comb[j * n + k]).sum::<f32>() + eps);
            (0..n).for_each(|j| comb[j * n + k] *= share);
        }
    }
}

/// The released width, its loops unrolled: the sixteen numbers stay in registers.
fn sinkhorn_4(comb: &mut [f32], iterations: usize, eps: f32) {
    let mut c: [[f32; 4]; 4] = std::array::from_fn(|j| std::array::from_fn(|k| comb[j * 4 + k]));
    for iteration in 0..iterations {
        if iteration > 0 {
            let shares: [f32; 4] =
                std::array::from_fn(|j| 1.0 / ((c[j][0] + c[j][1]) + (c[j][2] + c[j][3]) + eps));
            c = std::array::from_fn(|j| std::array::from_fn(|k| c[j][k] * shares[j]));
        }
        let shares: [f32; 4] =
            std::array::from_fn(|k| 1.0 / ((c[0][k] + c[1][k]) + (c[2][k] + c[3][k]) + eps));
        c = std::array::from_fn(|j| std::array::from_fn(|k| c[j][k] * shares[k]));
    }
    for (i, value) in comb.iter_mut().enumerate() {
        *value = c[i / 4][i % 4];
    }
}

/// Behind the sublayer: out[k] = post[k] y + sum_j comb[j, k] x[j].
#[repr(C)]
pub struct ExpandArgs {
    pub y: *const f32,
    pub x: *const f32,
    pub post: *const f32,
    pub comb: *const f32,
    pub out: *mut f32,
    pub tokens: usize,
    pub streams: usize,
    pub width: usize,
    pub threads: usize,
}

unsafe impl Sync for ExpandArgs {}

pub unsafe fn expand(a: &ExpandArgs) {
    let out = Shared(a.out);
    split(a.tokens, a.threads, |begin, end| {
        for t in begin..end {
            unsafe { expand_token(a, t, out.get()) };
        }
    });
}

unsafe fn expand_token(a: &ExpandArgs, t: usize, out: *mut f32) {
    let (n, d) = (a.streams, a.width);
    let x = a.x.add(t * n * d);
    for i in (0..d).step_by(8) {
        let y = F8::load(a.y.add(t * d + i));
        let mut streams = [F8::zero(); MOST];
        for (j, stream) in streams[..n].iter_mut().enumerate() {
            *stream = F8::load(x.add(j * d + i));
        }
        for k in 0..n {
            let mut sum = F8::splat(*a.post.add(t * n + k)).mul(y);
            for (j, stream) in streams[..n].iter().enumerate() {
                sum = sum.fma(F8::splat(*a.comb.add((t * n + j) * n + k)), *stream);
            }
            sum.store(out.add((t * n + k) * d + i));
        }
    }
}
