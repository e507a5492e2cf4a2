//! Attention of each query over its window and its blocks; see `kernels/attend.py`.

use crate::keys::{Keys, Rows};
use crate::simd::F8;
use crate::threads::{split, Shared};

/// Inputs of one call; shapes as in the reference, all contiguous but for the given strides.
#[repr(C)]
pub struct AttendArgs {
    pub q: *const f32,
    pub sinks: *const f32,
    pub ring: *const u8,
    pub kv: *const u8,
    pub starts: *const i64,
    pub blocks: *const u8,
    pub limits: *const i64,
    pub picks: *const i32,
    pub out: *mut f32,
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub width: usize,
    pub window: usize,
    pub topk: usize,
    pub kind: usize,
    pub starts_stride: usize,
    pub limits_stride: usize,
    pub blocks_stride: usize,
    pub threads: usize,
}

unsafe impl Sync for AttendArgs {}

/// What one thread needs beside its inputs.
struct Scratch {
    keys: Vec<*const f32>,
    scores: Vec<f32>,
    near: Rows,
    far: Rows,
}

pub unsafe fn attend(args: &AttendArgs) {
    let out = Shared(args.out);
    for row in 0..args.batch {
        // a run of queries shares its window's rows, made plain fp32 once
        split(args.tokens, args.threads, |begin, end| {
            let mut scratch = Scratch {
                keys: Vec::new(),
                scores: Vec::new(),
                near: Rows::default(),
                far: Rows::default(),
            };
            unsafe { attend_run(args, row, begin, end, &mut scratch, out.get()) };
        });
    }
}

unsafe fn attend_run(
    a: &AttendArgs,
    row: usize,
    begin: usize,
    end: usize,
    s: &mut Scratch,
    out: *mut f32,
) {
    let start = *a.starts.add(row * a.starts_stride) as usize;
    let ring = Keys::new(a.ring, a.kind, a.width).from(row * a.window);
    let kv = Keys::new(a.kv, a.kind, a.width).from(row * a.tokens);
    let blocks = Keys::new(a.blocks, a.kind, a.width).from(row * a.blocks_stride);
    let first = (start + begin + 1).saturating_sub(a.window);
    s.near.fill(start + end - first, a.width, |i| {
        let position = first + i;
        if position < start { ring.at(position % a.window) } else { kv.at(position - start) }
    });
    let dense = a.picks.is_null();
    if dense && !a.limits.is_null() {
        let most = *a.limits.add(row * a.limits_stride + end - 1) as usize;
        let most = (begin..end)
            .map(|t| *a.limits.add(row * a.limits_stride + t) as usize)
            .fold(most, usize::max);
        s.far.fill(most, a.width, |i| blocks.at(i));
    }
    for t in begin..end {
        let position = start + t;
        let oldest = (position + 1).saturating_sub(a.window);
        s.keys.clear();
        s.keys.extend((oldest..=position).map(|p| s.near.row(p - first)));
        if dense {
            if !a.limits.is_null() {
                let limit = *a.limits.add(row * a.limits_stride + t) as usize;
                s.keys.extend((0..limit).map(|i| s.far.row(i)));
            }
        } else {
            let picks = a.picks.add((row * a.tokens + t) * a.topk);
            let count = (0..a.topk).take_while(|&i| *picks.add(i) >= 0).count();
            s.far.fill(count, a.width, |i| blocks.at(*picks.add(i) as usize));
            s.keys.extend((0..count).map(|i| s.far.row(i)));
        }
        let at = (row * a.tokens + t) * a.heads * a.width;
        attend_query(a.q.add(at), a.sinks, &s.keys, &mut s.scores, out.add(at), a.heads, a.width);
    }
}

/// One query, all heads. `width` is a multiple of 8.
pub unsafe fn attend_query(
    q: *const f32,
    sinks: *const f32,
    keys: &[*const f32],
    scores: &mut Vec<f32>,
    out: *mut f32,
    heads: usize,
    width: usize,
) {
    let mut h = 0;
    while h + 4 <= heads {
        attend_heads::<4>(q.add(h * width), sinks.add(h), keys, scores, out.add(h * width), width);
        h += 4;
    }
    while h < heads {
        attend_heads::<1>(q.add(h * width), sinks.add(h), keys, scores, out.add(h * width), width);
        h += 1;
    }
}

unsafe fn attend_heads<const H: usize>(
    q: *const f32,
    sinks: *const f32,
    keys: &[*const f32],
    scores: &mut Vec<f32>,
    out: *mut f32,
    width: usize,
) {
    // rows of scores are padded to whole vectors; the padding takes no weight
    let padded = keys.len().next_multiple_of(8);
    scores.clear();
    scores.resize(H * padded, f32::NEG_INFINITY);
    let scale = 1.0 / (width as f32).sqrt();
    let base = scores.as_mut_ptr();
    let mut j = 0;
    while j + 3 <= keys.len() {
        score::<H, 3>(q, &keys[j..], base.add(j), padded, scale, width);
        j += 3;
    }
    while j < keys.len() {
        score::<H, 1>(q, &keys[j..], base.add(j), padded, scale, width);
        j += 1;
    }
    let mut shares = [0.0f32; H];
    for h in 0..H {
        shares[h] = softmax(base.add(h * padded), padded, *sinks.add(h));
    }
    let mut at = 0;
    while at + 16 <= width {
        mix::<H, 2>(base, padded, keys, at, &shares, out, width);
        at += 16;
    }
    while at < width {
        mix::<H, 1>(base, padded, keys, at, &shares, out, width);
        at += 8;
    }
}

/// Scaled logits of H heads for K keys.
#[inline(always)]
unsafe fn score<const H: usize, const K: usize>(
    q: *const f32,
    keys: &[*const f32],
    scores: *mut f32,
    stride: usize,
    scale: f32,
    width: usize,
) {
    let mut acc = [[F8::zero(); K]; H];
    let mut i = 0;
    while i < width {
        let k: [F8; K] = std::array::from_fn(|j| F8::load(keys[j].add(i)));
        for (h, row) in acc.iter_mut().enumerate() {
            let x = F8::load(q.add(h * width + i));
            for j in 0..K {
                row[j] = row[j].fma(x, k[j]);
            }
        }
        i += 8;
    }
    for (h, row) in acc.iter().enumerate() {
        for (j, lanes) in row.iter().enumerate() {
            *scores.add(h * stride + j) = lanes.sum() * scale;
        }
    }
}

/// Turns logits into exponentials in place; returns what makes them weights.
unsafe fn softmax(scores: *mut f32, n: usize, sink: f32) -> f32 {
    let mut peak = F8::splat(sink);
    for i in (0..n).step_by(8) {
        peak = peak.max(F8::load(scores.add(i)));
    }
    let peak = peak.largest();
    let mut total = F8::zero();
    for i in (0..n).step_by(8) {
        let weight = F8::load(scores.add(i)).sub(F8::splat(peak)).exp();
        weight.store(scores.add(i));
        total = total.add(weight);
    }
    1.0 / (total.sum() + (sink - peak).exp())
}

/// out[h, at..at + 8 V] = share[h] * sum_j weight[h, j] * key[j]
#[inline(always)]
unsafe fn mix<const H: usize, const V: usize>(
    weights: *const f32,
    stride: usize,
    keys: &[*const f32],
    at: usize,
    shares: &[f32; H],
    out: *mut f32,
    width: usize,
) {
    let mut acc = [[F8::zero(); V]; H];
    for (j, key) in keys.iter().enumerate() {
        let k: [F8; V] = std::array::from_fn(|v| F8::load(key.add(at + 8 * v)));
        for (h, row) in acc.iter_mut().enumerate() {
            let weight = F8::splat(*weights.add(h * stride + j));
            for v in 0..V {
                row[v] = row[v].fma(weight, k[v]);
            }
        }
    }
    for (h, row) in acc.iter().enumerate() {
        for (v, lanes) in row.iter().enumerate() {
            lanes.mul(F8::splat(shares[h])).store(out.add(h * width + at + 8 * v));
        }
    }
}
