//! Hyper-connections, a token at a time; see `kernels/streams.py`.

use crate::rows::scale_of;
use crate::simd::{dot, sigmoid, F16};
use crate::threads::{split, Shared};
use std::ops::Range;

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

/// Tokens whose coefficients are computed together, one to a lane.
const LANES: usize = 16;

pub unsafe fn mix(a: &MixArgs) {
    let (input, post, comb) = (Shared(a.input), Shared(a.post), Shared(a.comb));
    split(a.tokens, a.threads, |begin, end| {
        for first in (begin..end).step_by(LANES) {
            let tokens = first..end.min(first + LANES);
            unsafe { mix_tokens(a, tokens, input.get(), post.get(), comb.get()) };
        }
    });
}

unsafe fn mix_tokens(
    a: &MixArgs,
    tokens: Range<usize>,
    input: *mut f32,
    post: *mut f32,
    comb: *mut f32,
) {
    let (n, d) = (a.streams, a.width);
    let coefficients = (2 + n) * n;
    let mut m = [[0.0f32; LANES]; (2 + MOST) * MOST];
    for (lane, t) in tokens.clone().enumerate() {
        let x = a.x.add(t * n * d);
        let scale = scale_of(x, n * d, a.norm_eps);
        for (i, lanes) in m[..coefficients].iter_mut().enumerate() {
            lanes[lane] = scale
                * if a.mixed.is_null() {
                    dot(x, a.function.add(i * n * d), n * d)
                } else {
                    *a.mixed.add(t * coefficients + i)
                };
        }
    }
    let logit = |i: usize| {
        let scale = F16::splat(*a.scale.add((i / n).min(2)));
        F16::splat(*a.base.add(i)).fma(F16::load(m[i].as_ptr()), scale)
    };
    let mut pre = [F16::zero(); MOST];
    for (j, weight) in pre[..n].iter_mut().enumerate() {
        *weight = logit(j).sigmoid().add(F16::splat(a.hc_eps));
        let weight = logit(n + j).sigmoid().mul(F16::splat(2.0)).to_array();
        for (lane, t) in tokens.clone().enumerate() {
            *post.add(t * n + j) = weight[lane];
        }
    }
    let mut square = [F16::zero(); MOST * MOST];
    for (i, value) in square[..n * n].iter_mut().enumerate() {
        *value = logit(2 * n + i);
    }
    sinkhorn(&mut square[..n * n], n, a.iterations, a.hc_eps);
    for (i, value) in square[..n * n].iter().enumerate() {
        let value = value.to_array();
        for (lane, t) in tokens.clone().enumerate() {
            *comb.add(t * n * n + i) = value[lane];
        }
    }
    let pre = pre.map(F16::to_array);
    for (lane, t) in tokens.enumerate() {
        let weights = std::array::from_fn(|j| pre[j][lane]);
        collapse(a.x.add(t * n * d), &weights, n, d, a.norm, a.norm_eps, input.add(t * d));
    }
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
    for i in (0..d).step_by(16) {
        let part = (d - i).min(16);
        let mut sum = F16::zero();
        for (j, weight) in pre[..n].iter().enumerate() {
            sum = sum.fma(F16::splat(*weight), F16::load_part(x.add(j * d + i), part));
        }
        sum.store_part(input.add(i), part);
    }
    let scale = F16::splat(scale_of(input, d, eps));
    for i in (0..d).step_by(16) {
        let part = (d - i).min(16);
        let value = F16::load_part(input.add(i), part).mul(scale);
        value.mul(F16::load_part(norm.add(i), part)).store_part(input.add(i), part);
    }
}

/// Softmax over k of [j, k], then sums over j and over k normalised in turn, ending on j.
fn sinkhorn(comb: &mut [F16], n: usize, iterations: usize, eps: f32) {
    let eps = F16::splat(eps);
    for row in comb.chunks_mut(n) {
        let peak = row.iter().copied().reduce(F16::max).expect("there is a stream");
        row.iter_mut().for_each(|value| *value = value.sub(peak).exp());
        let total = row.iter().copied().reduce(F16::add).expect("there is a stream");
        row.iter_mut().for_each(|value| *value = value.div(total).add(eps));
    }
    if n == 4 {
        return sinkhorn_4(comb, iterations, eps);
    }
    let one = F16::splat(1.0);
    for iteration in 0..iterations {
        if iteration > 0 {
            for row in comb.chunks_mut(n) {
                let total = row.iter().copied().reduce(F16::add).expect("there is a stream");
                let share = one.div(total.add(eps));
                row.iter_mut().for_each(|value| *value = value.mul(share));
            }
        }
        for k in 0..n {
            let total = (0..n).map(|j| comb[j * n + k]).reduce(F16::add);
            let share = one.div(total.expect("there is a stream").add(eps));
            (0..n).for_each(|j| comb[j * n + k] = comb[j * n + k].mul(share));
        }
    }
}

/// The released width, its loops unrolled: the sixteen vectors stay in registers.
fn sinkhorn_4(comb: &mut [F16], iterations: usize, eps: F16) {
    let one = F16::splat(1.0);
    let mut c: [[F16; 4]; 4] = std::array::from_fn(|j| std::array::from_fn(|k| comb[j * 4 + k]));
    let share = |a: F16, b: F16, c: F16, d: F16| one.div(a.add(b).add(c.add(d)).add(eps));
    for iteration in 0..iterations {
        if iteration > 0 {
            c = c.map(|row| {
                let share = share(row[0], row[1], row[2], row[3]);
                row.map(|value| value.mul(share))
            });
        }
        let shares: [F16; 4] =
            std::array::from_fn(|k| share(c[0][k], c[1][k], c[2][k], c[3][k]));
        c = c.map(|row| std::array::from_fn(|k| row[k].mul(shares[k])));
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
    for i in (0..d).step_by(16) {
        let part = (d - i).min(16);
        let y = F16::load_part(a.y.add(t * d + i), part);
        let mut streams = [F16::zero(); MOST];
        for (j, stream) in streams[..n].iter_mut().enumerate() {
            *stream = F16::load_part(x.add(j * d + i), part);
        }
        for k in 0..n {
            let mut sum = F16::splat(*a.post.add(t * n + k)).mul(y);
            for (j, stream) in streams[..n].iter().enumerate() {
                sum = sum.fma(F16::splat(*a.comb.add((t * n + j) * n + k)), *stream);
            }
            sum.store_part(out.add((t * n + k) * d + i), part);
        }
    }
}
