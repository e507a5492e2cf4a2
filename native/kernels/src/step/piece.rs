//! A piece of tokens, shared out among threads.

use super::attention::attention;
use super::clock::{Clock, Part};
use super::feed::feed;
use super::{LayerArgs, SiteArgs, StepArgs};
use crate::keys::{Keys, BF16, FP32};
use crate::matrix::{Matrix, Vectors, FEW};
use crate::rows::scale_of;
use crate::streams::{expand, mix, ExpandArgs, MixArgs};
use crate::threads::Shared;
use crate::{attend, matrix, select};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Barrier;

/// Tokens whose streams stay in the nearer caches from one step of their mixing to the next.
const NEAR: usize = 64;

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
        if self.a.kind == BF16 { BF16 } else { FP32 }
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
        Member { clock: None, a, begin, count, is_first, is_last, many, kv, latents, keys, sound, barrier }
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

/// What flows between the parts of a layer, of each of a thread's tokens in turn.
pub struct Scratch {
    pub input: Vec<f32>,
    pub output: Vec<f32>,
    mixed_streams: Vec<f32>,
    post: Vec<f32>,
    comb: Vec<f32>,
    /// By the frequencies that they belong to.
    pub phases: Vec<(Vec<f64>, Vec<f32>)>,
    pub low: Vec<f32>,
    pub q: Vec<f32>,
    pub kv: Vec<f32>,
    /// Room for one entry of the ring's kind.
    pub entry: Vec<u8>,
    pub mixed: Vec<f32>,
    pub index_q: Vec<f32>,
    pub index_weights: Vec<f32>,
    pub limits: Vec<i64>,
    pub picks: Vec<i32>,
    pub grouped: Vec<f32>,
    pub scores: Vec<f32>,
    /// Of an expert: its tokens' inputs, what is between, and its outputs.
    pub gathered: Vec<f32>,
    pub hidden: Vec<f32>,
    pub up: Vec<f32>,
    pub made: Vec<f32>,
    pub work: matrix::Work,
    pub attend: attend::Work,
    pub select: select::Work,
}

impl Scratch {
    fn new(a: &StepArgs, most: usize) -> Scratch {
        let room = |width: usize| vec![0.0; most * width];
        let n = a.streams;
        Scratch {
            input: room(a.width),
            output: room(a.width),
            mixed_streams: vec![0.0; NEAR * (2 + n) * n],
            post: room(n),
            comb: room(n * n),
            phases: Vec::new(),
            low: room(a.q_rank),
            q: room(a.heads * a.head_width),
            kv: room(a.head_width),
            entry: vec![0; 8 * a.head_width],
            mixed: room(a.heads * a.head_width),
            index_q: room(a.index_heads * a.index_width),
            index_weights: room(a.index_heads),
            limits: vec![0; most],
            picks: vec![0; most * a.topk],
            grouped: room(a.groups * a.group_rank),
            scores: room(a.experts),
            gathered: Vec::new(),
            hidden: Vec::new(),
            up: Vec::new(),
            made: Vec::new(),
            work: matrix::Work::default(),
            attend: attend::Work::default(),
            select: select::Work::default(),
        }
    }

    /// Fits the buffers to a run of `count` tokens.
    fn begin(&mut self, a: &StepArgs, count: usize) {
        let n = a.streams;
        self.phases.clear();
        for (buffer, width) in [
            (&mut self.input, a.width),
            (&mut self.output, a.width),
            (&mut self.post, n),
            (&mut self.comb, n * n),
            (&mut self.low, a.q_rank),
            (&mut self.q, a.heads * a.head_width),
            (&mut self.kv, a.head_width),
            (&mut self.mixed, a.heads * a.head_width),
            (&mut self.index_q, a.index_heads * a.index_width),
            (&mut self.index_weights, a.index_heads),
            (&mut self.grouped, a.groups * a.group_rank),
            (&mut self.scores, a.experts),
        ] {
            buffer.resize(count * width, 0.0);
        }
        self.limits.resize(count, 0);
        self.picks.resize(count * a.topk, 0);
    }

    /// The next sublayer's input, and how its output enters the streams, of tokens from `first` on.
    unsafe fn mix(&mut self, m: &Member, first: usize, site: &SiteArgs, x: &[f32]) {
        let (a, n) = (m.a, m.a.streams);
        let mut mixed = std::ptr::null();
        if m.many {
            let data = site.function as *const u8;
            let function = Matrix { data, scales: std::ptr::null(), kind: FP32, first: 0 };
            let (outputs, inputs) = ((2 + n) * n, n * a.width);
            let v = m.vectors(x, &mut self.mixed_streams, outputs, inputs);
            function.times(v, outputs, inputs, &mut self.work);
            mixed = self.mixed_streams.as_ptr();
        }
        mix(&MixArgs {
            x: x.as_ptr(),
            mixed,
            function: site.function,
            base: site.base,
            scale: site.scale,
            norm: site.norm,
            input: self.input.as_mut_ptr().add(first * a.width),
            post: self.post.as_mut_ptr().add(first * n),
            comb: self.comb.as_mut_ptr().add(first * n * n),
            tokens: x.len() / (n * a.width),
            streams: n,
            width: a.width,
            iterations: a.iterations,
            threads: 1,
            hc_eps: a.hc_eps,
            norm_eps: a.norm_eps,
        });
    }

    /// Takes the sublayer's output into the streams of tokens from `first` on.
    unsafe fn expand(&self, m: &Member, first: usize, x: &mut [f32]) {
        let (n, d) = (m.a.streams, m.a.width);
        expand(&ExpandArgs {
            y: self.output.as_ptr().add(first * d),
            x: x.as_ptr(),
            post: self.post.as_ptr().add(first * n),
            comb: self.comb.as_ptr().add(first * n * n),
            out: x.as_mut_ptr(),
            tokens: x.len() / (n * d),
            streams: n,
            width: d,
            threads: 1,
        });
    }
}

/// The window's entries of a layer.
pub fn ring_of(a: &StepArgs, layer: &LayerArgs) -> Keys {
    Keys { data: layer.ring, kind: a.kind, width: a.head_width, rope: a.rope, page: a.window }
}
