//! Tokens into a compressor, and the blocks that they complete; see `model/compressor.py`.

use crate::keys::Keys;
use crate::matrix::{Matrix, Vectors, Work};
use crate::rows::{norm_rotate, NormRotateArgs};
use crate::simd::F16;

/// A compressor's weights and state. Without `wkv` there is none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CompressorArgs {
    pub wkv: Matrix,
    pub wgate: Matrix,
    pub ape: *const f32,
    pub norm: *const f32,
    /// A ring of 2m tokens, [2m, 2, 2c], or a running softmax, [3, c].
    pub pending: *mut f32,
    pub entries: *mut u8,
    pub ratio: usize,
    pub width: usize,
    /// 1 where a block also takes the tokens of the one before.
    pub overlaps: usize,
    /// Form and page of the entries.
    pub kind: usize,
    pub page: usize,
}

/// Where a token stands, and how positions turn into phases.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub position: usize,
    pub frequencies: &'a [f64],
}

/// cos and sin, interleaved. The angle is taken in fp64: at position 2^20 an fp32 product is off by
/// a tenth of a radian.
pub fn phases_at(position: usize, frequencies: &[f64], phases: &mut [f32]) {
    for (pair, frequency) in phases.chunks_exact_mut(2).zip(frequencies) {
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        pair.copy_from_slice(&[cos as f32, sin as f32]);
    }
}

impl CompressorArgs {
    pub fn exists(&self) -> bool {
        self.wkv.exists()
    }

    /// Content and gate of some tokens, [count, 2, channels].
    pub unsafe fn project(&self, v: Vectors, out: *mut f32, inputs: usize, work: &mut Work) {
        let channels = self.channels();
        let mut v = Vectors { out, out_stride: 2 * channels, ..v };
        self.wkv.times(v, channels, inputs, work);
        v.out = out.add(channels);
        self.wgate.times(v, channels, inputs, work);
    }

    pub fn channels(&self) -> usize {
        self.width * (1 + self.overlaps)
    }

    /// Numbers that it takes in of a token.
    pub fn taken(&self) -> usize {
        2 * self.channels()
    }

    /// Takes in tokens as `project` left them, and stores each block that they complete.
    pub unsafe fn take_all(&self, tokens: &mut [f32], first: Place, eps: f32) {
        let mut block = vec![0.0f32; self.width];
        for (t, token) in tokens.chunks_mut(self.taken()).enumerate() {
            let place = Place { position: first.position + t, ..first };
            if self.take(token, place, &mut block) {
                self.finish(&mut block, place, eps);
            }
        }
    }

    /// Takes in a token; whether it completed `block`.
    unsafe fn take(&self, token: &mut [f32], place: Place, block: &mut [f32]) -> bool {
        let c = self.width;
        let channels = self.channels();
        let phase = place.position % self.ratio;
        let done = phase + 1 == self.ratio;
        let (content, gate) = token.split_at_mut(channels);
        for (i, value) in gate.iter_mut().enumerate() {
            *value += *self.ape.add(phase * channels + i);
        }
        if self.overlaps == 1 {
            let slot = place.position % (2 * self.ratio);
            let target = self.pending.add(slot * 2 * channels);
            std::ptr::copy_nonoverlapping(token.as_ptr(), target, 2 * channels);
            if done {
                self.pool_ring(place.position, block);
            }
        } else {
            self.pool_running(&content[..c], gate, done, block);
        }
        done
    }

    /// The block that ends at `position`: *prev* halves of its predecessor's tokens, *cur* halves of
    /// its own, one softmax per channel.
    unsafe fn pool_ring(&self, position: usize, block: &mut [f32]) {
        let (m, c) = (self.ratio, self.width);
        let first = position + 2 - m; // its own first token + 1, so that nothing is negative
        for i in (0..c).step_by(16) {
            let count = (c - i).min(16);
            let part = |k: usize, gate: usize| {
                // token first - 1 - m + k; the first m are the predecessor's
                let slot = (first + m - 1 + k) % (2 * m);
                let half = if k < m { 0 } else { c };
                F16::load_part(self.pending.add((slot * 2 + gate) * 2 * c + half + i), count)
            };
            let peak = (0..2 * m).fold(F16::splat(f32::MIN), |peak, k| peak.max(part(k, 1)));
            let (mut total, mut sum) = (F16::zero(), F16::zero());
            for k in 0..2 * m {
                let share = part(k, 1).sub(peak).exp();
                total = total.add(share);
                sum = sum.fma(share, part(k, 0));
            }
            sum.div(total).store_part(block.as_mut_ptr().add(i), count);
        }
    }

    /// Goes on with the running softmax; a finished block leaves it empty.
    unsafe fn pool_running(&self, content: &[f32], gate: &[f32], done: bool, block: &mut [f32]) {
        let c = self.width;
        let (peaks, totals, sums) =
            (self.pending, self.pending.add(c), self.pending.add(2 * c));
        for i in (0..c).step_by(16) {
            let part = (c - i).min(16);
            let load = |from: *const f32| F16::load_part(from.add(i), part);
            let store = |lanes: F16, to: *mut f32| lanes.store_part(to.add(i), part);
            let (z, held) = (load(gate.as_ptr()), load(peaks));
            let peak = held.max(z);
            let (kept, share) = (held.sub(peak).exp(), z.sub(peak).exp());
            let total = share.fma(load(totals), kept);
            let sum = share.mul(load(content.as_ptr())).fma(load(sums), kept);
            if done {
                store(sum.div(total), block.as_mut_ptr());
                store(F16::splat(-1e30), peaks);
                store(F16::zero(), totals);
                store(F16::zero(), sums);
            } else {
                store(peak, peaks);
                store(total, totals);
                store(sum, sums);
            }
        }
    }

    /// Norm, rotation at the block's first token, and into the list.
    unsafe fn finish(&self, block: &mut [f32], place: Place, eps: f32) {
        let index = place.position / self.ratio;
        let rope = 2 * place.frequencies.len();
        let mut phases = vec![0.0f32; rope];
        phases_at(index * self.ratio, place.frequencies, &mut phases);
        norm_rotate(&NormRotateArgs {
            x: block.as_ptr(),
            weight: self.norm,
            phases: phases.as_ptr(),
            out: block.as_mut_ptr(),
            rows: 1,
            width: self.width,
            rope,
            heads: 1,
            tokens: 1,
            threads: 1,
            eps,
            direction: 1.0,
        });
        self.list(rope).store(index, block);
    }

    /// The entries; `rope` numbers of each are rotary.
    pub fn list(&self, rope: usize) -> Keys {
        Keys { data: self.entries, kind: self.kind, width: self.width, rope, page: self.page }
    }
}
