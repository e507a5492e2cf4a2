//! One thread's buffers, and the residual streams' way around a sublayer through them.

use super::piece::Member;
use super::{SiteArgs, StepArgs};
use crate::keys::FP32;
use crate::matrix::Matrix;
use crate::streams::{expand, mix, ExpandArgs, MixArgs};
use crate::{attend, matrix, select};

/// Tokens whose streams stay in the nearer caches from one step of their mixing to the next.
pub const NEAR: usize = 64;

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
    pub fn new(a: &StepArgs, most: usize) -> Scratch {
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
    pub fn begin(&mut self, a: &StepArgs, count: usize) {
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
    pub unsafe fn mix(&mut self, m: &Member, first: usize, site: &SiteArgs, x: &[f32]) {
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
    pub unsafe fn expand(&self, m: &Member, first: usize, x: &mut [f32]) {
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
