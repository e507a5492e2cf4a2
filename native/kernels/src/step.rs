//! Tokens of one sequence through the whole network: the operations of this crate in the order of
//! `model/transformer.py`, without a return to Python in between.
//!
//! Tokens go in pieces, and each thread takes a run of a piece's tokens through all layers; they wait
//! for each other where a token needs what others left, around the compressors and the ring. Every
//! sum has an order of its own, so neither pieces nor threads change a bit, nor how calls of more
//! than `FEW` tokens are cut. Calls of up to `FEW` have the bits of single tokens.

mod attention;
mod clock;
mod feed;
mod piece;
mod scratch;

use crate::matrix::{Matrix, FEW};
use crate::pool::CompressorArgs;
use std::sync::atomic::{AtomicBool, Ordering};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct SiteArgs {
    pub function: *const f32,
    pub base: *const f32,
    pub scale: *const f32,
    pub norm: *const f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LayerArgs {
    pub attention_site: SiteArgs,
    pub feed_site: SiteArgs,
    pub wq_a: Matrix,
    pub wq_b: Matrix,
    pub wkv: Matrix,
    pub wo_a: Matrix,
    pub wo_b: Matrix,
    pub index_wq_b: Matrix,
    pub index_weights: Matrix,
    pub gate: Matrix,
    pub w1: Matrix,
    pub w3: Matrix,
    pub w2: Matrix,
    pub shared_w1: Matrix,
    pub shared_w3: Matrix,
    pub shared_w2: Matrix,
    pub compressor: CompressorArgs,
    pub indexer: CompressorArgs,
    pub q_norm: *const f32,
    pub kv_norm: *const f32,
    pub sinks: *const f32,
    pub gate_bias: *const f32,
    /// Experts by token id, or null where scores choose.
    pub table: *const i64,
    pub frequencies: *const f64,
    pub ring: *mut u8,
}

/// What joins streams and the next token in front of a draft block. Without `e_proj` there is none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct JoinArgs {
    pub e_proj: Matrix,
    pub h_proj: Matrix,
    pub e_norm: *const f32,
    pub h_norm: *const f32,
    /// The streams that the last layer or the last draft left, [count, streams, width].
    pub streams: *const f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct StepArgs {
    pub layers: *const LayerArgs,
    pub embedding: Matrix,
    pub join: JoinArgs,
    /// The streams behind the last layer, [count, streams, width].
    pub out: *mut f32,
    pub tokens: *const i64,
    /// Where the seconds of each `clock::Part` are added up, or null.
    pub seconds: *mut f64,
    pub count: usize,
    pub position: usize,
    pub num_layers: usize,
    pub width: usize,
    pub streams: usize,
    pub iterations: usize,
    pub heads: usize,
    pub head_width: usize,
    pub rope: usize,
    pub q_rank: usize,
    pub groups: usize,
    pub group_rank: usize,
    pub window: usize,
    pub index_heads: usize,
    pub index_width: usize,
    pub topk: usize,
    pub experts: usize,
    pub experts_per_token: usize,
    pub expert_width: usize,
    pub shared_width: usize,
    pub kind: usize,
    pub threads: usize,
    pub hc_eps: f32,
    pub norm_eps: f32,
    pub limit: f32,
    pub scaling: f32,
    /// The model computes in bf16; see `matrix::Vectors`.
    pub narrow: bool,
}

unsafe impl Sync for StepArgs {}

/// Tokens that a thread takes through the layers at once: enough to make laying out a matrix cheap,
/// few enough for their streams to stay near.
const RUN: usize = 256;
/// A thread is not worth its start for fewer.
const LEAST: usize = 32;

/// False if a score of an indexer or a gate was no number.
pub unsafe fn step(a: &StepArgs) -> bool {
    let sound = AtomicBool::new(true);
    let threads = if a.count <= FEW { 1 } else { a.threads.clamp(1, a.count.div_ceil(LEAST)) };
    let size = RUN * threads;
    let streams = a.streams * a.width;
    let mut work = piece::Work::new(a, size.min(a.count), threads);
    for begin in (0..a.count).step_by(size) {
        let mut part = *a;
        part.count = size.min(a.count - begin);
        part.position = a.position + begin;
        part.tokens = a.tokens.add(begin);
        part.out = a.out.add(begin * streams);
        part.join.streams = a.join.streams.wrapping_add(begin * streams);
        piece::run(&part, &mut work, &sound);
    }
    sound.load(Ordering::Relaxed)
}
