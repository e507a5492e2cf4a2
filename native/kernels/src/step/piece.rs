//! A piece of tokens, shared out among threads.

use super::attention::attention;
use super::clock::{Clock, Part};
use super::feed::feed;
use super::scratch::{Scratch, NEAR};
use super::{LayerArgs, SiteArgs, StepArgs};
use crate::keys::{Keys, BF16, FP32};
use crate::matrix::{Vectors, FEW};
use crate::rows::scale_of;
use crate::threads::Shared;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Barrier;

/// What a call needs beside its inputs, for pieces of up to `most` tokens.
pub struct Work {
    /// Of all tokens of a piece: latents as they will be stored, and what compressors take in.
    kv: Vec<u8>,
    latents: Vec<f32>,
    keys: Vec<f32>,
    scratches: Vec<Scratch>,
    many: bool,
}

impl Work {
    pub unsafe fn new(a: &StepArgs, most: usize, threads: usize) -> Work {
        let layers = std::slice::from_raw_parts(a.layers, a.num_layers);
        let most_of = |size: &dyn Fn(&LayerArgs) -> usize| layers.iter().map(size).max();
        let latents = most_of(&|layer| layer.compressor.taken()).unwrap_or(0);
        let keys = most_of(&|layer| layer.indexer.taken()).unwrap_or(0);
        let own = most.div_ceil(threads);
        Work {
            kv: vec![0; most * 4 * a.head_width],
            latents: vec![0.0; most * latents],
            keys: vec![0.0; most * keys],
            scratches: (0..threads).map(|_| Scratch::new(a, own)).collect(),
            many: a.count > FEW,
        }
    }
}

/// One thread's share of a piece: tokens begin .. begin + count of it.
pub struct Member<'a> {
    pub a: &'a StepArgs,
    pub begin: usize,
    pub count: usize,
    pub is_first: bool,
    pub is_last: bool,
    /// See `matrix::Vectors`.
    pub many: bool,
    pub kv: Shared<u8>,
    pub latents: Shared<f32>,
    pub keys: Shared<f32>,
    /// The first thread's.
    pub clock: Option<Clock>,
    sound: &'a AtomicBool,
    barrier: &'a Barrier,
}

impl Member<'_> {
    /// What has been done since the last call belongs to `part`.
    pub fn lap(&self, part: Part) {
        if let Some(clock) = &self.clock {
            clock.lap(part);
        }
    }

    /// Until all threads have come so far.
    pub fn wait(&self) {
        if !(self.is_first && self.is_last) {
            self.barrier.wait();
        }
    }

    /// A score was no number: the call goes on, and fails in the end.
    pub fn fail(&self) {
        self.sound.store(false, Ordering::Relaxed);
    }

    /// Where the call's own latents lie, of a plain kind.
    pub fn kv_kind(&self) -> usize {
        if self.a.kind == BF16 {
            BF16
        } else {
            FP32
        }
    }

    pub fn position(&self) -> usize {
        self.a.position + self.begin
    }

    /// Out = x W^T for rows that lie one behind the other.
    pub fn vectors(&self, x: &[f32], out: &mut [f32], outputs: usize, inputs: usize) -> Vectors {
        Vectors {
            x: x.as_ptr(),
            x_stride: inputs,
            out: out.as_mut_ptr(),
            out_stride: outputs,
            count: x.len() / inputs,
            many: self.many,
            narrow: self.a.narrow,
        }
    }
}

/// Takes a piece through all layers; its streams are in `a.out` then.
pub unsafe fn run(a: &StepArgs, work: &mut Work, sound: &AtomicBool) {
    let size = a.count.div_ceil(work.scratches.len());
    let threads = a.count.div_ceil(size);
    let barrier = Barrier::new(threads);
    let (kv, latents) = (Shared(work.kv.as_mut_ptr()), Shared(work.latents.as_mut_ptr()));
    let keys = Shared(work.keys.as_mut_ptr());
    let member = |number: usize| {
        let begin = number * size;
        let count = size.min(a.count - begin);
        let (is_first, is_last) = (number == 0, number + 1 == threads);
        let (many, sound, barrier) = (work.many, sound, &barrier);
        Member {
            clock: None,
            a,
            begin,
            count,
            is_first,
            is_last,
            many,
            kv,
            latents,
            keys,
            sound,
            barrier,
        }
    };
    let (first, others) = work.scratches.split_first_mut().expect("there is one at least");
    std::thread::scope(|scope| {
        for (number, scratch) in others[..threads - 1].iter_mut().enumerate() {
            let member = member(number + 1);
            scope.spawn(move || unsafe { through_layers(&member, scratch) });
        }
        through_layers(&Member { clock: Clock::new(a.seconds), ..member(0) }, first);
    });
}

unsafe fn through_layers(m: &Member, s: &mut Scratch) {
    let (a, size) = (m.a, m.a.streams * m.a.width);
    let x = std::slice::from_raw_parts_mut(a.out.add(m.begin * size), m.count * size);
    s.begin(a, m.count);
    enter(m, s, x);
    let layers = std::slice::from_raw_parts(a.layers, a.num_layers);
    cross(m, s, x, false, layers.first().map(|layer| &layer.attention_site));
    for (number, layer) in layers.iter().enumerate() {
        m.lap(Part::Streams);
        attention(m, layer, s);
        cross(m, s, x, true, Some(&layer.feed_site));
        m.lap(Part::Streams);
        feed(m, layer, s);
        m.lap(Part::Experts);
        cross(m, s, x, true, layers.get(number + 1).map(|next| &next.attention_site));
    }
    m.lap(Part::Streams);
}

/// From one sublayer to the next: takes the output of the last into the streams, if there was one,
/// and mixes the next one's input, a few tokens at a time while their streams are near.
unsafe fn cross(m: &Member, s: &mut Scratch, x: &mut [f32], expands: bool, to: Option<&SiteArgs>) {
    let size = m.a.streams * m.a.width;
    for (number, x) in x.chunks_mut(NEAR * size).enumerate() {
        if expands {
            s.expand(m, number * NEAR, x);
        }
        if let Some(site) = to {
            s.mix(m, number * NEAR, site, x);
        }
    }
}

/// The streams in front of the first layer: the embedded token in each, or what a draft joins.
unsafe fn enter(m: &Member, s: &mut Scratch, x: &mut [f32]) {
    let (a, d) = (m.a, m.a.width);
    let size = a.streams * d;
    let mut embedded = vec![0.0f32; m.count * d];
    for (t, token) in embedded.chunks_mut(d).enumerate() {
        a.embedding.row(*a.tokens.add(m.begin + t) as usize, token.as_mut_ptr(), d);
    }
    x.fill(0.0);
    if a.join.e_proj.exists() {
        let mut projected = vec![0.0f32; m.count * d];
        normalize(&mut embedded, a.join.e_norm, d, a.norm_eps);
        let v = m.vectors(&embedded, &mut projected, d, d);
        a.join.e_proj.times(v, d, d, &mut s.work);
        let streams = a.join.streams.add(m.begin * size);
        let mut streams = std::slice::from_raw_parts(streams, m.count * size).to_vec();
        normalize(&mut streams, a.join.h_norm, d, a.norm_eps);
        a.join.h_proj.times(m.vectors(&streams, x, d, d), d, d, &mut s.work);
        embedded = projected;
    }
    for (token, streams) in embedded.chunks(d).zip(x.chunks_mut(size)) {
        for stream in streams.chunks_mut(d) {
            for (sum, part) in stream.iter_mut().zip(token) {
                *sum += part;
            }
        }
    }
}

/// RMS norm of each row in place.
pub unsafe fn normalize(x: &mut [f32], weight: *const f32, width: usize, eps: f32) {
    for row in x.chunks_mut(width) {
        let scale = scale_of(row.as_ptr(), width, eps);
        for (i, value) in row.iter_mut().enumerate() {
            *value *= scale * *weight.add(i);
        }
    }
}

/// The window's entries of a layer.
pub fn ring_of(a: &StepArgs, layer: &LayerArgs) -> Keys {
    Keys { data: layer.ring, kind: a.kind, width: a.head_width, rope: a.rope, page: a.window }
}
