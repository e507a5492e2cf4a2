//! One query's softmax over its keys, a few heads at a time; see `attend`.

use crate::keys::FP32;
use crate::matrix::room;
use crate::packing::narrow;
use crate::simd::{F16, IS_WIDE};

/// A query's keys: those of its window, and those of its blocks, each of one plain kind.
pub struct Segments<'a> {
    pub near: &'a [*const u8],
    pub far: &'a [*const u8],
}

/// Heads that share each load of a key.
const GROUP: usize = 4;
/// Keys of a tile of scores, whose sums fill a vector together with the heads.
const TILE: usize = 4;
/// Vectors of an output that a pass over the keys sums up.
const SPAN: usize = if IS_WIDE { 4 } else { 1 };

/// One query, all heads. `width` is a multiple of 8.
pub unsafe fn attend_query<const NEAR: usize, const FAR: usize, const NARROW: bool>(
    q: *const f32,
    sinks: *const f32,
    keys: &Segments,
    (scores, queries): (&mut Vec<f32>, &mut Vec<f32>),
    out: *mut f32,
    heads: usize,
    width: usize,
) {
    let whole = heads / GROUP * GROUP;
    for h in (0..whole).step_by(GROUP) {
        let sinks = std::array::from_fn(|i| *sinks.add(h + i));
        let (q, out) = (q.add(h * width), out.add(h * width));
        attend_heads::<NEAR, FAR, NARROW>(q, sinks, keys, (scores, queries), out, width);
    }
    if whole == heads {
        return;
    }
    // heads that fill no group get company that is thrown away
    let (rest, size) = (heads - whole, (heads - whole) * width);
    let mut padded = vec![0.0; 2 * GROUP * width];
    let (company, results) = padded.split_at_mut(GROUP * width);
    std::ptr::copy_nonoverlapping(q.add(whole * width), company.as_mut_ptr(), size);
    let sinks = std::array::from_fn(|i| if i < rest { *sinks.add(whole + i) } else { 0.0 });
    let (q, target) = (company.as_ptr(), results.as_mut_ptr());
    attend_heads::<NEAR, FAR, NARROW>(q, sinks, keys, (scores, queries), target, width);
    std::ptr::copy_nonoverlapping(results.as_ptr(), out.add(whole * width), size);
}

/// One group of heads. Scores lie key by key, [n, GROUP], four keys to a vector, either segment
/// filled up to whole vectors.
unsafe fn attend_heads<const NEAR: usize, const FAR: usize, const NARROW: bool>(
    mut q: *const f32,
    sinks: [f32; GROUP],
    keys: &Segments,
    (scores, queries): (&mut Vec<f32>, &mut Vec<f32>),
    out: *mut f32,
    width: usize,
) {
    let near = keys.near.len().next_multiple_of(TILE);
    let far = keys.far.len().next_multiple_of(TILE);
    let scores = room(scores, (near + far) * GROUP);
    let scale = 1.0 / (width as f32).sqrt();
    let base = scores.as_mut_ptr();
    let behind = base.add(near * GROUP);
    if NARROW {
        let pairs = room(queries, GROUP * width / 2).as_mut_ptr();
        narrow(std::slice::from_raw_parts(q, GROUP * width), pairs);
        q = pairs;
    }
    score_all::<NEAR, NARROW>(q, keys.near, base, scale, width);
    score_all::<FAR, NARROW>(q, keys.far, behind, scale, width);
    let shares = softmax(scores, sinks);
    let mut at = 0;
    while at + 16 * SPAN <= width {
        mix::<NEAR, FAR, SPAN>(base, behind, keys, at, 16, &shares, out, width);
        at += 16 * SPAN;
    }
    while at < width {
        let part = (width - at).min(16);
        mix::<NEAR, FAR, 1>(base, behind, keys, at, part, &shares, out, width);
        at += 16;
    }
}

/// Sixteen numbers of a key from `at` on, or the eight that are left and zeros.
#[inline(always)]
unsafe fn part_of<const KIND: usize>(key: *const u8, at: usize, part: usize) -> F16 {
    if KIND == FP32 {
        return F16::load_part((key as *const f32).add(at), part);
    }
    let key = (key as *const u16).add(at);
    if part == 16 {
        F16::load_bf16(key)
    } else {
        F16::load_bf16_half(key)
    }
}

unsafe fn score_all<const KIND: usize, const NARROW: bool>(
    q: *const f32,
    keys: &[*const u8],
    scores: *mut f32,
    scale: f32,
    width: usize,
) {
    for (number, tile) in keys.chunks(TILE).enumerate() {
        let target = scores.add(number * TILE * GROUP);
        let four = std::array::from_fn(|j| tile[j.min(tile.len() - 1)]);
        score::<KIND, NARROW>(q, four, target, scale, width);
        for i in tile.len() * GROUP..TILE * GROUP {
            *target.add(i) = f32::NEG_INFINITY;
        }
    }
}

/// Scaled logits of a group of heads for a tile of keys; queries in pairs of bf16 where NARROW.
#[inline(always)]
unsafe fn score<const KIND: usize, const NARROW: bool>(
    q: *const f32,
    keys: [*const u8; TILE],
    scores: *mut f32,
    scale: f32,
    width: usize,
) {
    let mut acc = [F16::zero(); TILE * GROUP];
    let steps = if NARROW { width / 2 } else { width };
    let mut add = |i: usize, part: usize| {
        let k: [F16; TILE] = std::array::from_fn(|j| {
            if NARROW {
                F16::load_part((keys[j] as *const f32).add(i), part)
            } else {
                part_of::<KIND>(keys[j], i, part)
            }
        });
        for h in 0..GROUP {
            let x = F16::load_part(q.add(h * steps + i), part);
            for j in 0..TILE {
                let sum = &mut acc[j * GROUP + h];
                *sum = if NARROW { sum.dot(x, k[j]) } else { sum.fma(x, k[j]) };
            }
        }
    };
    let mut i = 0;
    while i + 16 <= steps {
        add(i, 16);
        i += 16;
    }
    if i < steps {
        add(i, steps - i);
    }
    F16::all_sums(acc).mul(F16::splat(scale)).store(scores);
}

/// Turns logits into exponentials in place; returns what makes them weights.
fn softmax(scores: &mut [f32], sinks: [f32; GROUP]) -> [f32; GROUP] {
    // lane i holds head i mod 4
    let over = |lanes: [f32; 16], f: fn(f32, f32) -> f32| -> [f32; GROUP] {
        std::array::from_fn(|h| f(f(lanes[h], lanes[h + 4]), f(lanes[h + 8], lanes[h + 12])))
    };
    let spread = |x: [f32; GROUP]| -> F16 {
        let lanes: [f32; 16] = std::array::from_fn(|i| x[i % GROUP]);
        unsafe { F16::load(lanes.as_ptr()) }
    };
    let mut peaks = spread(sinks);
    for tile in scores.chunks_exact(16) {
        peaks = peaks.max(unsafe { F16::load(tile.as_ptr()) });
    }
    let peak = spread(over(peaks.to_array(), f32::max));
    let mut totals = F16::zero();
    for tile in scores.chunks_exact_mut(16) {
        let weights = unsafe { F16::load(tile.as_ptr()) }.sub(peak).exp();
        unsafe { weights.store(tile.as_mut_ptr()) };
        totals = totals.add(weights);
    }
    let totals = over(totals.to_array(), |a, b| a + b);
    let sinks = spread(sinks).sub(peak).exp().to_array();
    std::array::from_fn(|h| 1.0 / (totals[h] + sinks[h]))
}

/// out[h, at..at + 16 V] = share[h] * sum_j weight[j, h] * key[j]
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn mix<const NEAR: usize, const FAR: usize, const V: usize>(
    near: *const f32,
    far: *const f32,
    keys: &Segments,
    at: usize,
    part: usize,
    shares: &[f32; GROUP],
    out: *mut f32,
    width: usize,
) {
    let mut acc = [[F16::zero(); V]; GROUP];
    for (j, &key) in keys.near.iter().enumerate() {
        let k = std::array::from_fn(|v| part_of::<NEAR>(key, at + 16 * v, part));
        add_weighted(&mut acc, near.add(j * GROUP), k);
    }
    for (j, &key) in keys.far.iter().enumerate() {
        let k = std::array::from_fn(|v| part_of::<FAR>(key, at + 16 * v, part));
        add_weighted(&mut acc, far.add(j * GROUP), k);
    }
    for (h, row) in acc.iter().enumerate() {
        for (v, lanes) in row.iter().enumerate() {
            let target = out.add(h * width + at + 16 * v);
            lanes.mul(F16::splat(shares[h])).store_part(target, part);
        }
    }
}

#[inline(always)]
unsafe fn add_weighted<const V: usize>(
    acc: &mut [[F16; V]; GROUP],
    weights: *const f32,
    key: [F16; V],
) {
    for (h, row) in acc.iter_mut().enumerate() {
        let weight = F16::splat(*weights.add(h));
        for (sum, k) in row.iter_mut().zip(key) {
            *sum = sum.fma(weight, k);
        }
    }
}
