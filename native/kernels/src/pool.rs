//! One token into a compressor, and the block that it may complete; see `model/compressor.py`.

use crate::keys::Keys;
use crate::matrix::{Matrix, Vectors};
use crate::rows::{norm_rotate, NormRotateArgs};
use crate::simd::F8;

/// A compressor's weights and state. Without `wkv` there is none.
#[repr(C)]
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

/// Where the token stands, and how positions turn into phases.
pub struct Place {
    pub position: usize,
    pub frequencies: *const f64,
    pub rope: usize,
}

impl Place {
    /// cos and sin, interleaved. The angle is taken in fp64: at position 2^20 an fp32 product is
    /// off by a tenth of a radian.
    pub unsafe fn phases_at(&self, position: usize, phases: &mut [f32]) {
        for i in 0..self.rope / 2 {
            let (sin, cos) = (position as f64 * *self.frequencies.add(i)).sin_cos();
            phases[2 * i] = cos as f32;
            phases[2 * i + 1] = sin as f32;
        }
    }
}

impl CompressorArgs {
    pub fn exists(&self) -> bool {
        self.wkv.exists()
    }

    /// Content and gate of some tokens, [count, 2, channels].
    pub unsafe fn project(&self, x: *const f32, count: usize, inputs: usize) -> Vec<f32> {
        let channels = self.channels();
        let mut projected = vec![0.0f32; count * 2 * channels];
        let out = projected.as_mut_ptr();
        let mut v = Vectors { x, x_stride: inputs, out, out_stride: 2 * channels, count };
        self.wkv.times(v, channels, inputs);
        v.out = out.add(channels);
        self.wgate.times(v, channels, inputs);
        projected
    }

    pub fn channels(&self) -> usize {
        self.width * (1 + self.overlaps)
    }

    /// Takes in a token as `project` left it; returns how many blocks are complete then.
    pub unsafe fn take(&self, projected: &mut [f32], place: &Place, eps: f32) -> usize {
        let c = self.width;
        let channels = self.channels();
        let (content, gate) = projected.split_at_mut(channels);
        let phase = place.position % self.ratio;
        for (i, value) in gate.iter_mut().enumerate() {
            *value += *self.ape.add(phase * channels + i);
        }
        let complete = (place.position + 1) / self.ratio;
        let done = phase + 1 == self.ratio;
        let mut block = vec![0.0f32; c];
        if self.overlaps == 1 {
            let slot = place.position % (2 * self.ratio);
            let target = self.pending.add(slot * 2 * channels);
            std::ptr::copy_nonoverlapping(projected.as_ptr(), target, 2 * channels);
            if done {
                self.pool_ring(place.position, &mut block);
            }
        } else {
            self.pool_running(content, gate, done, &mut block);
        }
        if done {
            self.finish(&mut block, complete - 1, place, eps);
        }
        complete
    }

    /// The block that ends at `position`: *prev* halves of its predecessor's tokens, *cur* halves of
    /// its own, one softmax per channel.
    unsafe fn pool_ring(&self, position: usize, block: &mut [f32]) {
        let (m, c) = (self.ratio, self.width);
        let first = position + 2 - m; // its own first token + 1, so that nothing is negative
        for i in (0..c).step_by(8) {
            let part = |k: usize, gate: usize| {
                // token first - 1 - m + k; the first m are the predecessor's
                let slot = (first + m - 1 + k) % (2 * m);
                let half = if k < m { 0 } else { c };
                F8::load(self.pending.add((slot * 2 + gate) * 2 * c + half + i))
            };
            let peak = (0..2 * m).fold(F8::splat(f32::MIN), |peak, k| peak.max(part(k, 1)));
            let (mut total, mut sum) = (F8::zero(), F8::zero());
            for k in 0..2 * m {
                let share = part(k, 1).sub(peak).exp();
                total = total.add(share);
                sum = sum.fma(share, part(k, 0));
            }
            sum.div(total).store(block.as_mut_ptr().add(i));
        }
    }

    /// Goes on with the running softmax; a finished block leaves it empty.
    unsafe fn pool_running(&self, content: &[f32], gate: &[f32], done: bool, block: &mut [f32]) {
        let c = self.width;
        let (peaks, totals, sums) =
            (self.pending, self.pending.add(c), self.pending.add(2 * c));
        for i in (0..c).step_by(8) {
            let z = F8::load(gate.as_ptr().add(i));
            let held = F8::load(peaks.add(i));
            let peak = held.max(z);
            let (kept, share) = (held.sub(peak).exp(), z.sub(peak).exp());
            let total = share.fma(F8::load(totals.add(i)), kept);
            let sum = share.mul(F8::load(content.as_ptr().add(i)));
            let sum = sum.fma(F8::load(sums.add(i)), kept);
            if done {
                sum.div(total).store(block.as_mut_ptr().add(i));
                F8::splat(-1e30).store(peaks.add(i));
                F8::zero().store(totals.add(i));
                F8::zero().store(sums.add(i));
            } else {
                peak.store(peaks.add(i));
                total.store(totals.add(i));
                sum.store(sums.add(i));
            }
        }
    }

    /// Norm, rotation at the block's first token, and into the list.
    unsafe fn finish(&self, block: &mut [f32], index: usize, place: &Place, eps: f32) {
        let mut phases = vec![0.0f32; place.rope];
        place.phases_at(index * self.ratio, &mut phases);
        norm_rotate(&NormRotateArgs {
            x: block.as_ptr(),
            weight: self.norm,
            phases: phases.as_ptr(),
            out: block.as_mut_ptr(),
            rows: 1,
            width: self.width,
            rope: place.rope,
            heads: 1,
            tokens: 1,
            threads: 1,
            eps,
            direction: 1.0,
        });
        self.list(place.rope).store(index, block);
    }

    /// The entries; `rope` numbers of each are rotary.
    pub fn list(&self, rope: usize) -> Keys {
        Keys { data: self.entries, kind: self.kind, width: self.width, rope, page: self.page }
    }
}
