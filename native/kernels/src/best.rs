//! The best of a stream of scores that comes in block order: score descending, then lowest block.

use crate::simd::F16;

/// Candidates, in the order of their blocks.
pub struct Held<'a> {
    pub scores: &'a mut [f32],
    pub blocks: &'a mut [i32],
}

pub struct Best {
    topk: usize,
    count: usize,
    /// What a later block has to exceed, once `topk` are held: an equal score loses.
    bar: f32,
    sound: bool,
}

impl Best {
    pub fn new(topk: usize) -> Best {
        Best { topk, count: 0, bar: f32::NEG_INFINITY, sound: true }
    }

    /// How many candidates are to be held: room for more than are kept, so that the bar is seldom
    /// set anew, and for the rest of a vector.
    pub fn places(topk: usize) -> usize {
        2 * topk + 64 + 16
    }

    /// Scores of blocks `base`, `base + 1`, ...
    pub fn take(&mut self, mut held: Held, scores: &[f32], base: usize) {
        let most = held.scores.len() - 16;
        for at in (0..scores.len()).step_by(16) {
            let part = (scores.len() - at).min(16);
            // both zeros are one
            let lanes = unsafe { F16::load_part(scores.as_ptr().add(at), part) }.add(F16::zero());
            let mut enters = (1u32 << part) - 1;
            if self.bar > f32::NEG_INFINITY {
                enters &= lanes.not_at_most(F16::splat(self.bar));
                if enters == 0 {
                    continue;
                }
            }
            let numbers = F16::counting((base + at) as i32);
            unsafe { held.put(self.count, lanes, numbers, enters) };
            self.count += enters.count_ones() as usize;
            if self.count > most - 16 {
                self.trim(&mut held);
            }
        }
    }

    /// Keeps the `topk` best; of those that are as good as the last of them the first.
    fn trim(&mut self, held: &mut Held) {
        self.sound &= !held.scores[..self.count].iter().any(|score| score.is_nan());
        if !self.sound {
            self.count = 0; // there is no order, and the call fails
        }
        if self.count <= self.topk {
            return;
        }
        let whole = self.count.next_multiple_of(16);
        held.scores[self.count..whole].fill(f32::NEG_INFINITY); // behind the last, never chosen
        let last = nth_greatest(&held.scores[..whole], self.count, self.topk);
        let bar = F16::splat(last);
        let mut level = self.topk.saturating_sub(above(&held.scores[..whole], last));
        let mut kept = 0;
        for at in (0..whole).step_by(16) {
            let (scores, blocks) = unsafe { held.get(at) };
            let better = scores.not_at_most(bar);
            let mut chosen = better | (!bar.not_at_most(scores) & 0xffff);
            let ties = (chosen & !better).count_ones() as usize;
            for _ in level..ties {
                let tie = chosen & !better;
                chosen &= !(1 << (31 - tie.leading_zeros()));
            }
            level -= level.min(ties);
            unsafe { held.put(kept, scores, blocks, chosen) };
            kept += chosen.count_ones() as usize;
        }
        (self.count, self.bar) = (kept, last);
    }

    /// Writes the chosen blocks, ascending, then -1. False if any score was no number.
    pub unsafe fn write(mut self, mut held: Held, out: *mut i32) -> bool {
        self.trim(&mut held);
        let chosen = std::slice::from_raw_parts_mut(out, self.topk);
        let (blocks, rest) = chosen.split_at_mut(self.count);
        blocks.copy_from_slice(&held.blocks[..self.count]);
        rest.fill(-1);
        self.sound
    }
}

impl Held<'_> {
    /// Sixteen candidates from `at` on.
    unsafe fn get(&self, at: usize) -> (F16, F16) {
        let blocks = self.blocks.as_ptr().add(at) as *const f32;
        (F16::load(self.scores.as_ptr().add(at)), F16::load(blocks))
    }

    /// Writes those that `mask` names to `at` and behind, and up to a whole vector of rubbish.
    unsafe fn put(&mut self, at: usize, scores: F16, blocks: F16, mask: u32) {
        scores.pack(mask, self.scores.as_mut_ptr().add(at));
        blocks.pack(mask, self.blocks.as_mut_ptr().add(at) as *mut f32);
    }
}

/// How many of some numbers, whole vectors of them, are above a bar.
fn above(numbers: &[f32], bar: f32) -> usize {
    let bar = F16::splat(bar);
    let enters = |part: &[f32]| unsafe { F16::load(part.as_ptr()) }.not_at_most(bar).count_ones();
    numbers.chunks_exact(16).map(enters).sum::<u32>() as usize
}

/// The n-th greatest of the first `count` numbers, n < count, behind which -infinity follows. By
/// bisection over the order of their bits: a pass is a few vector operations, and most searches end
/// long before the last bit.
fn nth_greatest(numbers: &[f32], count: usize, n: usize) -> f32 {
    let (mut low, mut high) = (i32::MAX, i32::MIN);
    for number in &numbers[..count] {
        low = low.min(key(*number));
        high = high.max(key(*number));
    }
    while low < high {
        let middle = low + ((high as i64 - low as i64) / 2) as i32;
        let bar = number_of(middle);
        let better = above(numbers, bar);
        if better == n {
            let better = numbers.iter().map(|&x| if x > bar { x } else { f32::INFINITY });
            return better.fold(f32::INFINITY, f32::min);
        }
        if better > n {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    number_of(low)
}

/// Ascending with the number, and its own inverse.
fn key(number: f32) -> i32 {
    let bits = number.to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

fn number_of(key: i32) -> f32 {
    f32::from_bits((key ^ (((key >> 31) as u32) >> 1) as i32) as u32)
}
