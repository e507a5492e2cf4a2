//! Scores of blocks and the choice of the best; see `kernels/select.py`.

use crate::best::{Best, Held};
use crate::keys::{Keys, BF16, FP32};
use crate::matrix::room;
use crate::packing;
use crate::panels::{lay_out, PANEL};
use crate::simd::{prefetch, F16, IS_WIDE};
use crate::threads::{split, Shared};

/// Inputs of one call; shapes as in the reference.
#[repr(C)]
pub struct SelectArgs {
    pub q: *const f32,
    pub weights: *const f32,
    pub keys: *const u8,
    pub limits: *const i64,
    pub picks: *mut i32,
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub width: usize,
    pub topk: usize,
    pub kind: usize,
    pub page: usize,
    pub limits_stride: usize,
    /// Bytes from one row of the batch to the next.
    pub keys_stride: usize,
    pub threads: usize,
    /// The model computes in bf16: queries are rounded to it where keys are.
    pub narrow: bool,
}

unsafe impl Sync for SelectArgs {}

/// Keys are laid out in panels in stretches of so many, which then serve all queries of a run; one
/// query alone is done with a panel while it is still near.
const STRETCH: usize = 512;
const SHORT: usize = 64;
/// Keys that are fetched so far ahead of their use, in lines of so many bytes.
const AHEAD: usize = 32;
const LINE: usize = 64;
/// Queries that pass over a stretch together, so that few panels at a time are in use.
const QUERIES: usize = 16;
/// Heads and panels of a tile: its sums fill the registers.
const HEADS: usize = 4;
const PANELS: usize = if IS_WIDE { 4 } else { 1 };

/// What a run needs beside its inputs, kept between calls.
#[derive(Default)]
pub struct Work {
    queries: Vec<f32>,
    panels: Vec<f32>,
    rows: Vec<f32>,
    scores: Vec<f32>,
    held: Vec<f32>,
    blocks: Vec<i32>,
}

/// Fills `picks` ([B, T, topk], -1 behind the last). Returns false if a score was no number.
pub unsafe fn select(a: &SelectArgs) -> bool {
    let sound = std::sync::atomic::AtomicBool::new(true);
    let picks = Shared(a.picks);
    for row in 0..a.batch {
        split(a.tokens, a.threads, |begin, end| {
            if !unsafe { select_run(a, row, begin, end, picks.get(), &mut Work::default()) } {
                sound.store(false, std::sync::atomic::Ordering::Relaxed);
            }
        });
    }
    sound.into_inner()
}

/// As `select`, for queries begin..end of one row.
pub unsafe fn select_run(
    a: &SelectArgs,
    row: usize,
    begin: usize,
    end: usize,
    out: *mut i32,
    work: &mut Work,
) -> bool {
    let limit = |t: usize| *a.limits.add(row * a.limits_stride + t) as usize;
    let most = (begin..end).map(limit).max().unwrap_or(0);
    let keys = Keys { data: a.keys, kind: a.kind, width: a.width, rope: 0, page: a.page };
    let keys = keys.row(row, a.keys_stride);
    let narrow = a.narrow && a.kind == BF16;
    let steps = if narrow { a.width / 2 } else { a.width };
    let mut q = a.q.add((row * a.tokens + begin) * a.heads * a.width);
    if narrow {
        let count = (end - begin) * a.heads;
        let pairs = room(&mut work.queries, count * steps);
        let wide = std::slice::from_raw_parts(q, count * a.width);
        packing::narrow(wide, pairs.as_mut_ptr());
        q = pairs.as_ptr();
    }
    let mut best: Vec<Best> = (begin..end).map(|_| Best::new(a.topk)).collect();
    let places = Best::places(a.topk);
    let held = room(&mut work.held, (end - begin) * places).as_mut_ptr();
    work.blocks.resize(work.blocks.len().max((end - begin) * places), 0);
    let blocks = work.blocks.as_mut_ptr();
    let held = |t: usize| {
        let at = (t - begin) * places;
        Held {
            scores: std::slice::from_raw_parts_mut(held.add(at), places),
            blocks: std::slice::from_raw_parts_mut(blocks.add(at), places),
        }
    };
    let stretch = if end - begin == 1 { SHORT } else { STRETCH };
    let panels = room(&mut work.panels, stretch * steps).as_mut_ptr();
    let scores = room(&mut work.scores, QUERIES * stretch);
    for base in (0..most).step_by(stretch) {
        let count = stretch.min(most - base);
        for panel in 0..stretch.min(count.next_multiple_of(PANELS * PANEL)) / PANEL {
            let first = base + panel * PANEL;
            fill(
                keys,
                first,
                base + count,
                narrow,
                &mut work.rows,
                panels.add(panel * PANEL * steps),
            );
        }
        for first in (begin..end).step_by(QUERIES) {
            let run = first..end.min(first + QUERIES);
            let seen = |t: usize| limit(t).saturating_sub(base).min(count);
            for tile in (0..count).step_by(PANELS * PANEL) {
                for t in run.clone().filter(|&t| seen(t) > tile) {
                    let keys = panels.add(tile * steps);
                    let q = q.add((t - begin) * a.heads * steps);
                    let weights = a.weights.add((row * a.tokens + t) * a.heads);
                    let out = scores[(t - first) * stretch + tile..].as_mut_ptr();
                    if narrow {
                        score::<true>(q, weights, keys, a.heads, steps, out);
                    } else {
                        score::<false>(q, weights, keys, a.heads, steps, out);
                    }
                }
            }
            for t in run {
                let scores = &scores[(t - first) * stretch..][..seen(t)];
                best[t - begin].take(held(t), scores, base);
            }
        }
    }
    let mut sound = true;
    for (t, best) in (begin..end).zip(best) {
        sound &= best.write(held(t), out.add((row * a.tokens + t) * a.topk));
    }
    sound
}

/// One panel of keys from `first` on; behind the last it is filled with what is there.
unsafe fn fill(
    keys: Keys,
    first: usize,
    end: usize,
    narrow: bool,
    decoded: &mut Vec<f32>,
    panel: *mut f32,
) {
    let width = keys.width;
    let rows = room(decoded, PANEL * width).as_mut_ptr();
    let as_it_lies = keys.kind == if narrow { BF16 } else { FP32 };
    let rows = std::array::from_fn(|i| {
        let key = keys.at((first + i).min(end - 1));
        // the rows are read side by side, in which order no processor foresees what comes next
        let ahead = keys.at(first + i + AHEAD).bytes();
        (0..keys.code_bytes()).step_by(LINE).for_each(|at| prefetch(ahead.wrapping_add(at)));
        if as_it_lies {
            return key.bytes() as *const f32;
        }
        let row = rows.add(i * width);
        (0..width).step_by(8).for_each(|at| key.load(at).store(row.add(at)));
        row as *const f32
    });
    lay_out(rows, if narrow { width / 2 } else { width }, panel);
}

/// out[i] = sum_h w_h relu(q_h . k_i) for the keys of a tile's panels.
unsafe fn score<const NARROW: bool>(
    q: *const f32,
    weights: *const f32,
    keys: *const f32,
    heads: usize,
    steps: usize,
    out: *mut f32,
) {
    let mut sums = [F16::zero(); PANELS];
    let mut h = 0;
    while h + HEADS <= heads {
        add_heads::<NARROW, HEADS>(q.add(h * steps), weights.add(h), keys, steps, &mut sums);
        h += HEADS;
    }
    while h < heads {
        add_heads::<NARROW, 1>(q.add(h * steps), weights.add(h), keys, steps, &mut sums);
        h += 1;
    }
    for (p, sum) in sums.into_iter().enumerate() {
        sum.store(out.add(p * PANEL));
    }
}

#[inline(always)]
unsafe fn add_heads<const NARROW: bool, const H: usize>(
    q: *const f32,
    weights: *const f32,
    keys: *const f32,
    steps: usize,
    sums: &mut [F16; PANELS],
) {
    let mut acc = [[F16::zero(); PANELS]; H];
    for i in 0..steps {
        let k: [F16; PANELS] =
            std::array::from_fn(|p| F16::load(keys.add((p * steps + i) * PANEL)));
        for (h, row) in acc.iter_mut().enumerate() {
            let x = F16::splat(*q.add(h * steps + i));
            for (dot, k) in row.iter_mut().zip(k) {
                *dot = if NARROW { dot.dot(x, k) } else { dot.fma(x, k) };
            }
        }
    }
    // zero first: the larger of the two then is no number where the dot product is none
    for (h, row) in acc.into_iter().enumerate() {
        let weight = F16::splat(*weights.add(h));
        for (sum, dot) in sums.iter_mut().zip(row) {
            *sum = sum.fma(weight, F16::zero().max(dot));
        }
    }
}
