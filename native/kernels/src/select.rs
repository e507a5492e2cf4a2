//! Scores of blocks and the choice of the best; see `kernels/select.py`.

use crate::keys::{Key, Keys, BF16, FP32, FP4};
use crate::simd::F8;
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
}

unsafe impl Sync for SelectArgs {}

/// Keys are turned to columns in stretches of so many, which then serve all queries of a run.
const STRETCH: usize = 512;
const PANEL: usize = 16;
/// With fewer query heads than this in a run, turning keys to columns costs more than it saves.
const FEW: usize = 12;

/// Fills `picks` ([B, T, topk], -1 behind the last). Returns false if a score was no number.
pub unsafe fn select(a: &SelectArgs) -> bool {
    let sound = std::sync::atomic::AtomicBool::new(true);
    let picks = Shared(a.picks);
    for row in 0..a.batch {
        split(a.tokens, a.threads, |begin, end| {
            if !unsafe { select_run(a, row, begin, end, picks.get()) } {
                sound.store(false, std::sync::atomic::Ordering::Relaxed);
            }
        });
    }
    sound.into_inner()
}

unsafe fn select_run(a: &SelectArgs, row: usize, begin: usize, end: usize, out: *mut i32) -> bool {
    let limit = |t: usize| *a.limits.add(row * a.limits_stride + t) as usize;
    let most = (begin..end).map(limit).max().unwrap_or(0);
    let keys = Keys { data: a.keys, kind: a.kind, width: a.width, rope: 0, page: a.page };
    let keys = keys.row(row, a.keys_stride);
    let mut best: Vec<Best> = (begin..end).map(|_| Best::new(a.topk)).collect();
    let mut columns = vec![0.0f32; STRETCH * a.width];
    let mut scores = vec![0.0f32; STRETCH];
    let direct = (end - begin) * a.heads < FEW;
    for base in (0..most).step_by(STRETCH) {
        let count = STRETCH.min(most - base);
        if !direct {
            transpose(keys, base, count, a.width, &mut columns);
        }
        for t in begin..end {
            let seen = limit(t).saturating_sub(base).min(count);
            if seen == 0 {
                continue;
            }
            let at = row * a.tokens + t;
            let q = a.q.add(at * a.heads * a.width);
            let weights = a.weights.add(at * a.heads);
            if direct {
                let score = match a.kind {
                    FP32 => score_rows::<FP32>,
                    BF16 => score_rows::<BF16>,
                    _ => score_rows::<FP4>,
                };
                score(q, weights, keys, base, seen, a.heads, a.width, &mut scores);
            } else {
                score_columns(q, weights, &columns, seen, a.heads, a.width, &mut scores);
            }
            best[t - begin].take(&scores[..seen], base);
        }
    }
    let mut sound = true;
    for (t, best) in (begin..end).zip(best) {
        sound &= best.write(out.add((row * a.tokens + t) * a.topk));
    }
    sound
}

/// Panels of 16 keys, [count / 16, width, 16]; what is missing in the last panel is 0.
unsafe fn transpose(keys: Keys, base: usize, count: usize, width: usize, columns: &mut [f32]) {
    for panel in 0..count.div_ceil(PANEL) {
        let target = &mut columns[panel * PANEL * width..][..PANEL * width];
        for lane in 0..PANEL {
            let row = panel * PANEL + lane;
            let key = keys.at(base + row.min(count - 1));
            for i in (0..width).step_by(8) {
                let part = if row < count { key.load(i) } else { F8::zero() };
                for (k, x) in part.to_array().into_iter().enumerate() {
                    target[(i + k) * PANEL + lane] = x;
                }
            }
        }
    }
}

/// scores[i] = sum_h w_h relu(q_h . k_i) for the first `seen` keys (and rubbish up to the panel's
/// end).
unsafe fn score_columns(
    q: *const f32,
    weights: *const f32,
    columns: &[f32],
    seen: usize,
    heads: usize,
    width: usize,
    scores: &mut [f32],
) {
    for panel in 0..seen.div_ceil(PANEL) {
        let keys = columns.as_ptr().add(panel * PANEL * width);
        let mut sums = [F8::zero(); 2];
        let mut h = 0;
        while h + 4 <= heads {
            panel_heads::<4>(q.add(h * width), weights.add(h), keys, width, &mut sums);
            h += 4;
        }
        while h < heads {
            panel_heads::<1>(q.add(h * width), weights.add(h), keys, width, &mut sums);
            h += 1;
        }
        sums[0].store(scores.as_mut_ptr().add(panel * PANEL));
        sums[1].store(scores.as_mut_ptr().add(panel * PANEL + 8));
    }
}

#[inline(always)]
unsafe fn panel_heads<const H: usize>(
    q: *const f32,
    weights: *const f32,
    keys: *const f32,
    width: usize,
    sums: &mut [F8; 2],
) {
    let mut acc = [[F8::zero(); 2]; H];
    for i in 0..width {
        let k = [F8::load(keys.add(i * PANEL)), F8::load(keys.add(i * PANEL + 8))];
        for (h, row) in acc.iter_mut().enumerate() {
            let x = F8::splat(*q.add(h * width + i));
            row[0] = row[0].fma(x, k[0]);
            row[1] = row[1].fma(x, k[1]);
        }
    }
    // zero first: the larger of the two then is no number where the dot product is none
    for (h, row) in acc.iter().enumerate() {
        let weight = F8::splat(*weights.add(h));
        sums[0] = sums[0].fma(weight, F8::zero().max(row[0]));
        sums[1] = sums[1].fma(weight, F8::zero().max(row[1]));
    }
}

/// The same from rows as they lie in the cache, for one or few queries.
unsafe fn score_rows<const KIND: usize>(
    q: *const f32,
    weights: *const f32,
    keys: Keys,
    base: usize,
    seen: usize,
    heads: usize,
    width: usize,
    scores: &mut [f32],
) {
    let mut row = 0;
    while row + 2 <= seen {
        pair_heads::<2, KIND>(q, weights, keys, base + row, heads, width, &mut scores[row..]);
        row += 2;
    }
    if row < seen {
        pair_heads::<1, KIND>(q, weights, keys, base + row, heads, width, &mut scores[row..]);
    }
}

/// Scores of K keys, four heads at a time.
#[inline(always)]
unsafe fn pair_heads<const K: usize, const KIND: usize>(
    q: *const f32,
    weights: *const f32,
    keys: Keys,
    first: usize,
    heads: usize,
    width: usize,
    scores: &mut [f32],
) {
    scores[..K].fill(0.0);
    let pair: [Key; K] = std::array::from_fn(|j| keys.at(first + j));
    for h in (0..heads).step_by(4) {
        // heads beyond the last repeat it, and are not counted
        let head = |i: usize| (h + i).min(heads - 1);
        let mut acc = [[F8::zero(); 4]; K];
        for at in (0..width).step_by(8) {
            let k: [F8; K] = std::array::from_fn(|j| pair[j].load_of(KIND, at));
            for i in 0..4 {
                let x = F8::load(q.add(head(i) * width + at));
                for j in 0..K {
                    acc[j][i] = acc[j][i].fma(x, k[j]);
                }
            }
        }
        for (j, lanes) in acc.into_iter().enumerate() {
            for (i, dot) in F8::sums(lanes).into_iter().enumerate().take(heads - h) {
                let bright = if dot < 0.0 { 0.0 } else { dot };
                scores[j] = (*weights.add(h + i)).mul_add(bright, scores[j]);
            }
        }
    }
}

/// The best of a stream of scores that comes in block order.
pub struct Best {
    topk: usize,
    bar: f32,
    full: bool,
    sound: bool,
    /// Rank then block: ascending order is score descending, then lowest block.
    held: Vec<u64>,
}

impl Best {
    pub fn new(topk: usize) -> Best {
        let held = Vec::with_capacity(2 * topk + 64);
        Best { topk, bar: f32::NEG_INFINITY, full: false, sound: true, held }
    }

    /// Scores of blocks `base`, `base + 1`, ...
    pub fn take(&mut self, scores: &[f32], base: usize) {
        let whole = scores.len() / 8 * 8;
        for at in (0..whole).step_by(8) {
            let lanes = unsafe { F8::load(scores.as_ptr().add(at)) };
            // before the bar stands, everything enters
            let mut enters =
                if self.full { lanes.not_at_most(F8::splat(self.bar)) } else { 0xff };
            while enters != 0 {
                let lane = enters.trailing_zeros() as usize;
                enters &= enters - 1;
                self.push(scores[at + lane], base + at + lane);
            }
        }
        for (i, &score) in scores.iter().enumerate().skip(whole) {
            if !self.full || !(score <= self.bar) {
                self.push(score, base + i);
            }
        }
    }

    fn push(&mut self, score: f32, block: usize) {
        self.sound &= !score.is_nan();
        self.held.push((rank(score) as u64) << 32 | block as u64);
        if self.held.len() == self.held.capacity() {
            self.trim();
        }
    }

    /// Keeps the `topk` best. A later block needs a score above the bar: an equal one loses.
    fn trim(&mut self) {
        if self.held.len() >= self.topk {
            let (_, last, _) = self.held.select_nth_unstable(self.topk - 1);
            self.bar = score_of((*last >> 32) as u32);
            self.held.truncate(self.topk);
            self.full = true;
        }
    }

    /// Writes the chosen blocks, ascending, then -1. False if any score was no number.
    pub unsafe fn write(mut self, out: *mut i32) -> bool {
        self.trim();
        let mut blocks: Vec<i32> = self.held.iter().map(|&x| x as u32 as i32).collect();
        blocks.sort_unstable();
        for i in 0..self.topk {
            *out.add(i) = blocks.get(i).copied().unwrap_or(-1);
        }
        self.sound
    }
}

/// Ascending for descending scores; both zeros are one.
fn rank(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    !(if bits >> 31 == 1 { !bits } else { bits | 1 << 31 })
}

fn score_of(rank: u32) -> f32 {
    let bits = !rank;
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
}
