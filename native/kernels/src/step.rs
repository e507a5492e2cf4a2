//! One token of one sequence through the whole network: the operations of this crate in the order
//! of `model/transformer.py`, without a return to Python in between.

use crate::attend::{attend, AttendArgs};
use crate::keys::{Keys, FP4};
use crate::matrix::Matrix;
use crate::packing::hadamard;
use crate::pool::{CompressorArgs, Place};
use crate::rows::{gated, norm_rotate, scale_of, NormRotateArgs};
use crate::select::{select, SelectArgs};
use crate::simd::F8;
use crate::streams::{expand, mix, ExpandArgs, MixArgs};
use std::ptr::null;

#[repr(C)]
pub struct SiteArgs {
    pub function: *const f32,
    pub base: *const f32,
    pub scale: *const f32,
    pub norm: *const f32,
}

#[repr(C)]
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

#[repr(C)]
pub struct StepArgs {
    pub layers: *const LayerArgs,
    pub embedding: Matrix,
    /// The streams behind the last layer, [streams, width].
    pub out: *mut f32,
    pub token: usize,
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
}

/// False if a score of an indexer or a gate was no number.
pub unsafe fn step(a: &StepArgs) -> bool {
    let (n, d) = (a.streams, a.width);
    let mut x = vec![0.0f32; n * d];
    let mut next = vec![0.0f32; n * d];
    for stream in 0..n {
        a.embedding.row(a.token, x.as_mut_ptr().add(stream * d), d);
    }
    let mut scratch = Scratch::new(a);
    for number in 0..a.num_layers {
        let layer = &*a.layers.add(number);
        scratch.mix(a, &layer.attention_site, &x);
        if !attention(a, layer, &mut scratch) {
            return false;
        }
        scratch.expand(a, &x, &mut next);
        std::mem::swap(&mut x, &mut next);
        scratch.mix(a, &layer.feed_site, &x);
        if !feed(a, layer, &mut scratch) {
            return false;
        }
        scratch.expand(a, &x, &mut next);
        std::mem::swap(&mut x, &mut next);
    }
    std::ptr::copy_nonoverlapping(x.as_ptr(), a.out, n * d);
    true
}

/// What flows between the parts of a layer.
struct Scratch {
    input: Vec<f32>,
    output: Vec<f32>,
    post: Vec<f32>,
    comb: Vec<f32>,
    phases: Vec<f32>,
    low: Vec<f32>,
    q: Vec<f32>,
    kv: Vec<f32>,
    mixed: Vec<f32>,
    index_q: Vec<f32>,
    index_weights: Vec<f32>,
    picks: Vec<i32>,
    grouped: Vec<f32>,
    hidden: Vec<f32>,
    up: Vec<f32>,
    expert_out: Vec<f32>,
    scores: Vec<f32>,
}

impl Scratch {
    fn new(a: &StepArgs) -> Scratch {
        let wide = a.expert_width.max(a.shared_width);
        Scratch {
            input: vec![0.0; a.width],
            output: vec![0.0; a.width],
            post: vec![0.0; a.streams],
            comb: vec![0.0; a.streams * a.streams],
            phases: vec![0.0; a.rope],
            low: vec![0.0; a.q_rank],
            q: vec![0.0; a.heads * a.head_width],
            kv: vec![0.0; a.head_width],
            mixed: vec![0.0; a.heads * a.head_width],
            index_q: vec![0.0; a.index_heads * a.index_width],
            index_weights: vec![0.0; a.index_heads],
            picks: vec![0; a.topk],
            grouped: vec![0.0; a.groups * a.group_rank],
            hidden: vec![0.0; wide],
            up: vec![0.0; wide],
            expert_out: vec![0.0; a.width],
            scores: vec![0.0; a.experts],
        }
    }

    unsafe fn mix(&mut self, a: &StepArgs, site: &SiteArgs, x: &[f32]) {
        mix(&MixArgs {
            x: x.as_ptr(),
            mixed: null(),
            function: site.function,
            base: site.base,
            scale: site.scale,
            norm: site.norm,
            input: self.input.as_mut_ptr(),
            post: self.post.as_mut_ptr(),
            comb: self.comb.as_mut_ptr(),
            tokens: 1,
            streams: a.streams,
            width: a.width,
            iterations: a.iterations,
            threads: 1,
            hc_eps: a.hc_eps,
            norm_eps: a.norm_eps,
        });
    }

    unsafe fn expand(&self, a: &StepArgs, x: &[f32], next: &mut [f32]) {
        expand(&ExpandArgs {
            y: self.output.as_ptr(),
            x: x.as_ptr(),
            post: self.post.as_ptr(),
            comb: self.comb.as_ptr(),
            out: next.as_mut_ptr(),
            tokens: 1,
            streams: a.streams,
            width: a.width,
            threads: 1,
        });
    }
}

/// Rotates `heads` rows in place, with or without a norm (eps < 0) before.
unsafe fn turn(
    x: &mut [f32],
    weight: *const f32,
    phases: &[f32],
    width: usize,
    eps: f32,
    direction: f32,
) {
    let heads = x.len() / width;
    norm_rotate(&NormRotateArgs {
        x: x.as_ptr(),
        weight,
        phases: phases.as_ptr(),
        out: x.as_mut_ptr(),
        rows: heads,
        width,
        rope: phases.len(),
        heads,
        tokens: 1,
        threads: 1,
        eps,
        direction,
    });
}

unsafe fn attention(a: &StepArgs, layer: &LayerArgs, s: &mut Scratch) -> bool {
    let (d, c) = (a.width, a.head_width);
    let place = Place { position: a.position, frequencies: layer.frequencies, rope: a.rope };
    place.phases_at(a.position, &mut s.phases);
    let x = s.input.as_ptr();
    layer.wq_a.times(x, s.low.as_mut_ptr(), a.q_rank, d);
    let scale = scale_of(s.low.as_ptr(), a.q_rank, a.norm_eps);
    for (i, value) in s.low.iter_mut().enumerate() {
        *value *= scale * *layer.q_norm.add(i);
    }
    layer.wq_b.times(s.low.as_ptr(), s.q.as_mut_ptr(), a.heads * c, a.q_rank);
    turn(&mut s.q, null(), &s.phases, c, a.norm_eps, 1.0);
    layer.wkv.times(x, s.kv.as_mut_ptr(), c, d);
    turn(&mut s.kv, layer.kv_norm, &s.phases, c, a.norm_eps, 1.0);
    let ring = Keys {
        data: layer.ring,
        kind: a.kind,
        width: c,
        rope: a.rope,
        page: a.window,
    };
    // the token's own latent as the ring will give it back; its slot held one that no query of this
    // step sees
    ring.store(a.position % a.window, &mut s.kv);
    let stored = ring.at(a.position % a.window);
    for i in (0..c).step_by(8) {
        stored.load(i).store(s.kv.as_mut_ptr().add(i));
    }
    // blocks first: the query sees the block that its own token completes
    let mut blocks = 0;
    let mut picked = false;
    if layer.compressor.exists() {
        blocks = layer.compressor.take(x, d, &place, a.norm_eps) as i64;
        if layer.indexer.exists() {
            layer.indexer.take(x, d, &place, a.norm_eps);
            if blocks as usize > a.topk {
                picked = true;
                if !choose(a, layer, s, blocks) {
                    return false;
                }
            }
        }
    }
    let start = a.position as i64;
    attend(&AttendArgs {
        q: s.q.as_ptr(),
        sinks: layer.sinks,
        ring: layer.ring,
        kv: s.kv.as_ptr(),
        starts: &start,
        blocks: layer.compressor.entries,
        limits: &blocks,
        picks: if picked { s.picks.as_ptr() } else { null() },
        out: s.mixed.as_mut_ptr(),
        batch: 1,
        tokens: 1,
        heads: a.heads,
        width: c,
        window: a.window,
        topk: a.topk,
        kind: a.kind,
        rope: a.rope,
        page: layer.compressor.page,
        starts_stride: 0,
        limits_stride: 0,
        ring_stride: 0,
        blocks_stride: 0,
        threads: 1,
    });
    turn(&mut s.mixed, null(), &s.phases, c, -1.0, -1.0);
    let group = a.heads * c / a.groups;
    for g in 0..a.groups {
        layer.wo_a.from(g * a.group_rank, group).times(
            s.mixed.as_ptr().add(g * group),
            s.grouped.as_mut_ptr().add(g * a.group_rank),
            a.group_rank,
            group,
        );
    }
    let rank = a.groups * a.group_rank;
    layer.wo_b.times(s.grouped.as_ptr(), s.output.as_mut_ptr(), d, rank);
    true
}

/// The indexer's choice among `blocks`, into `picks`.
unsafe fn choose(a: &StepArgs, layer: &LayerArgs, s: &mut Scratch, blocks: i64) -> bool {
    let (heads, c) = (a.index_heads, a.index_width);
    layer.index_wq_b.times(s.low.as_ptr(), s.index_q.as_mut_ptr(), heads * c, a.q_rank);
    turn(&mut s.index_q, null(), &s.phases, c, -1.0, 1.0);
    if layer.indexer.kind == FP4 {
        s.index_q.chunks_mut(c).for_each(hadamard); // as the keys were
    }
    layer.index_weights.times(s.input.as_ptr(), s.index_weights.as_mut_ptr(), heads, a.width);
    let share = 1.0 / ((c * heads) as f32).sqrt();
    s.index_weights.iter_mut().for_each(|weight| *weight *= share);
    select(&SelectArgs {
        q: s.index_q.as_ptr(),
        weights: s.index_weights.as_ptr(),
        keys: layer.indexer.entries,
        limits: &blocks,
        picks: s.picks.as_mut_ptr(),
        batch: 1,
        tokens: 1,
        heads,
        width: c,
        topk: a.topk,
        kind: layer.indexer.kind,
        page: layer.indexer.page,
        limits_stride: 0,
        keys_stride: 0,
        threads: 1,
    })
}

/// Routed and shared experts.
unsafe fn feed(a: &StepArgs, layer: &LayerArgs, s: &mut Scratch) -> bool {
    let d = a.width;
    layer.gate.times(s.input.as_ptr(), s.scores.as_mut_ptr(), a.experts, d);
    for score in s.scores.iter_mut() {
        if score.is_nan() {
            return false;
        }
        *score = softplus(*score).sqrt();
    }
    let mut chosen: Vec<usize> = Vec::with_capacity(a.experts);
    if layer.table.is_null() {
        chosen.extend(0..a.experts);
        // score descending, then the lowest expert
        let rank = |e: usize| s.scores[e] + *layer.gate_bias.add(e);
        chosen.sort_by(|&x, &y| rank(y).total_cmp(&rank(x)).then(x.cmp(&y)));
        chosen.truncate(a.experts_per_token);
    } else {
        let row = layer.table.add(a.token * a.experts_per_token);
        chosen.extend((0..a.experts_per_token).map(|i| *row.add(i) as usize));
    }
    let total: f32 = chosen.iter().map(|&e| s.scores[e]).sum::<f32>() + 1e-20;
    s.output.fill(0.0);
    for &e in &chosen {
        let weight = s.scores[e] / total * a.scaling;
        let w1 = layer.w1.from(e * a.expert_width, d);
        let w3 = layer.w3.from(e * a.expert_width, d);
        let w2 = layer.w2.from(e * d, a.expert_width);
        expert(a, s, [w1, w3, w2], a.expert_width, weight);
    }
    expert(a, s, [layer.shared_w1, layer.shared_w3, layer.shared_w2], a.shared_width, 1.0);
    true
}

/// Adds one expert's output.
unsafe fn expert(a: &StepArgs, s: &mut Scratch, w: [Matrix; 3], width: usize, weight: f32) {
    w[0].times(s.input.as_ptr(), s.hidden.as_mut_ptr(), width, a.width);
    w[1].times(s.input.as_ptr(), s.up.as_mut_ptr(), width, a.width);
    for i in (0..width).step_by(8) {
        let at = s.hidden.as_mut_ptr().add(i);
        let hidden = gated(F8::load(at), F8::load(s.up.as_ptr().add(i)), a.limit);
        hidden.mul(F8::splat(weight)).store(at);
    }
    w[2].times(s.hidden.as_ptr(), s.expert_out.as_mut_ptr(), a.width, width);
    for (sum, part) in s.output.iter_mut().zip(&s.expert_out) {
        *sum += part;
    }
}

/// ln(1 + e^x), without loss for large x.
fn softplus(x: f32) -> f32 {
    if x > 20.0 {
        x
    } else {
        x.exp().ln_1p()
    }
}
