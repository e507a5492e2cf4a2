//! Attention of each query over its window and its blocks; see `kernels/attend.py`.

use crate::keys::{Keys, Rows, FP32};
use crate::simd::F8;
use crate::threads::{split, Shared};

/// Inputs of one call; shapes as in the reference, all contiguous but for the given strides.
#[repr(C)]
pub struct AttendArgs {
    pub q: *const f32,
    pub sinks: *const f32,
    pub ring: *const u8,
    pub kv: *const f32,
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
    pub rope: usize,
    pub page: usize,
    pub starts_stride: usize,
    pub limits_stride: usize,
    /// Bytes from one row of the batch to the next; so for the blocks.
    pub ring_stride: usize,
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
    let (kind, width, rope) = (a.kind, a.width, a.rope);
    let ring = Keys { data: a.ring, kind, width, rope, page: a.window }.row(row, a.ring_stride);
    let kv = Keys { data: a.kv as *const u8, kind: FP32, width, rope, page: 1 };
    let kv = kv.row(row, 4 * a.tokens * width);
    let blocks = Keys { data: a.blocks, kind, width, rope, page: a.page };
    let blocks = blocks.row(row, a.blocks_stride);
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

/// Heads that share each load of a key.
const GROUP: usize = 4;

/// One query, all heads. `width` is a multiple of 8.
unsafe fn attend_query(
    q: *const f32,
    sinks: *const f32,
    keys: &[*const f32],
    scores: &mut Vec<f32>,
    out: *mut f32,
    heads: usize,
    width: usize,
) {
    let whole = heads / GROUP * GROUP;
    for h in (0..whole).step_by(GROUP) {
        let sinks = std::array::from_fn(|i| *sinks.add(h + i));
        attend_heads(q.add(h * width), sinks, keys, scores, out.add(h * width), width);
    }
    if whole == heads {
        return;
    }
    // heads that fill no group get company that is thrown away
    let (rest, size) = (heads - whole, (heads - whole) * width);
    let mut padded = vec![0.0; 2 * GROUP * width];
    let (queries, results) = padded.split_at_mut(GROUP * width);
    std::ptr::copy_nonoverlapping(q.add(whole * width), queries.as_mut_ptr(), size);
    let sinks = std::array::from_fn(|i| if i < rest { *sinks.add(whole + i) } else { 0.0 });
    attend_heads(queries.as_ptr(), sinks, keys, scores, results.as_mut_ptr(), width);
    std::ptr::copy_nonoverlapping(results.as_ptr(), out.add(whole * width), size);
}

/// One group of heads. Scores lie key by key, [n, GROUP], two keys to a vector.
unsafe fn attend_heads(
    q: *const f32,
    sinks: [f32; GROUP],
    keys: &[*const f32],
    scores: &mut Vec<f32>,
    out: *mut f32,
    width: usize,
) {
    let n = keys.len();
    scores.clear();
    scores.resize(n.next_multiple_of(2) * GROUP, f32::NEG_INFINITY);
    let base = scores.as_mut_ptr();
    let scale = 1.0 / (width as f32).sqrt();
    let mut j = 0;
    while j + 3 <= n {
        score::<3>(q, &keys[j..], base.add(j * GROUP), scale, width);
        j += 3;
    }
    while j < n {
        score::<1>(q, &keys[j..], base.add(j * GROUP), scale, width);
        j += 1;
    }
    let shares = softmax(scores, sinks);
    let mut at = 0;
    while at + 16 <= width {
        mix::<2>(base, keys, at, &shares, out, width);
        at += 16;
    }
    while at < width {
        mix::<1>(base, keys, at, &shares, out, width);
        at += 8;
    }
}

/// Scaled logits of a group of heads for K keys.
#[inline(always)]
unsafe fn score<const K: usize>(
    q: *const f32,
    keys: &[*const f32],
    scores: *mut f32,
    scale: f32,
    width: usize,
) {
    let mut acc = [[F8::zero(); GROUP]; K];
    let mut i = 0;
    while i < width {
        let k: [F8; K] = std::array::from_fn(|j| F8::load(keys[j].add(i)));
        for h in 0..GROUP {
            let x = F8::load(q.add(h * width + i));
            for j in 0..K {
                acc[j][h] = acc[j][h].fma(x, k[j]);
            }
        }
        i += 8;
    }
    for (j, lanes) in acc.into_iter().enumerate() {
        let sums = F8::sums(lanes);
        for (h, sum) in sums.into_iter().enumerate() {
            *scores.add(j * GROUP + h) = sum * scale;
        }
    }
}

/// Turns logits into exponentials in place; returns what makes them weights.
fn softmax(scores: &mut [f32], sinks: [f32; GROUP]) -> [f32; GROUP] {
    let twice: [f32; 2 * GROUP] = std::array::from_fn(|i| sinks[i % GROUP]);
    let mut peaks = unsafe { F8::load(twice.as_ptr()) };
    for pair in scores.chunks_exact(2 * GROUP) {
        peaks = peaks.max(unsafe { F8::load(pair.as_ptr()) });
    }
    let lanes = peaks.to_array();
    let peak: [f32; 2 * GROUP] =
        std::array::from_fn(|i| lanes[i % GROUP].max(lanes[i % GROUP + GROUP]));
    let peaks = unsafe { F8::load(peak.as_ptr()) };
    let mut totals = F8::zero();
    for pair in scores.chunks_exact_mut(2 * GROUP) {
        let weights = unsafe { F8::load(pair.as_ptr()) }.sub(peaks).exp();
        unsafe { weights.store(pair.as_mut_ptr()) };
        totals = totals.add(weights);
    }
    let totals = totals.to_array();
    std::array::from_fn(|h| 1.0 / (totals[h] + totals[h + GROUP] + (sinks[h] - peak[h]).exp()))
}

/// out[h, at..at + 8 V] = share[h] * sum_j weight[j, h] * key[j]
#[inline(always)]
unsafe fn mix<const V: usize>(
    weights: *const f32,
    keys: &[*const f32],
    at: usize,
    shares: &[f32; GROUP],
    out: *mut f32,
    width: usize,
) {
    let mut acc = [[F8::zero(); V]; GROUP];
    for (j, key) in keys.iter().enumerate() {
        let k: [F8; V] = std::array::from_fn(|v| F8::load(key.add(at + 8 * v)));
        for (h, row) in acc.iter_mut().enumerate() {
            let weight = F8::splat(*weights.add(j * GROUP + h));
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
