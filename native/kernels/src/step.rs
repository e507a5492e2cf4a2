//! A few tokens of one sequence through the whole network: the operations of this crate in the
//! order of `model/transformer.py`, without a return to Python in between.
//!
//! A matrix is read once for all tokens, the rest goes token by token. Every number has the bits
//! that it has when the tokens come one at a time.

use crate::attend::{attend, AttendArgs};
use crate::keys::{Keys, FP4};
use crate::matrix::{Matrix, Vectors};
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

/// What joins streams and the next token in front of a draft block. Without `e_proj` there is none.
#[repr(C)]
pub struct JoinArgs {
    pub e_proj: Matrix,
    pub h_proj: Matrix,
    pub e_norm: *const f32,
    pub h_norm: *const f32,
    /// The streams that the last layer or the last draft left, [count, streams, width].
    pub streams: *const f32,
}

#[repr(C)]
pub struct StepArgs {
    pub layers: *const LayerArgs,
    pub embedding: Matrix,
    pub join: JoinArgs,
    /// The streams behind the last layer, [count, streams, width].
    pub out: *mut f32,
    pub tokens: *const i64,
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
    pub hc_eps: f32,
    pub norm_eps: f32,
    pub limit: f32,
    pub scaling: f32,
}

/// False if a score of an indexer or a gate was no number.
pub unsafe fn step(a: &StepArgs) -> bool {
    let (n, d) = (a.streams, a.width);
    let mut x = vec![0.0f32; a.count * n * d];
    let mut next = vec![0.0f32; a.count * n * d];
    enter(a, &mut x);
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
    std::ptr::copy_nonoverlapping(x.as_ptr(), a.out, x.len());
    true
}

/// The streams in front of the first layer: the embedded token in each, or what a draft joins.
unsafe fn enter(a: &StepArgs, x: &mut [f32]) {
    let (n, d) = (a.streams, a.width);
    let mut embedded = vec![0.0f32; a.count * d];
    for (t, token) in embedded.chunks_mut(d).enumerate() {
        a.embedding.row(*a.tokens.add(t) as usize, token.as_mut_ptr(), d);
    }
    if a.join.e_proj.exists() {
        let mut projected = vec![0.0f32; a.count * d];
        normalize(&mut embedded, a.join.e_norm, d, a.norm_eps);
        apply(a.join.e_proj, &embedded, &mut projected, d, d);
        let mut streams = std::slice::from_raw_parts(a.join.streams, x.len()).to_vec();
        normalize(&mut streams, a.join.h_norm, d, a.norm_eps);
        apply(a.join.h_proj, &streams, x, d, d);
        embedded = projected;
    }
    for (token, streams) in embedded.chunks(d).zip(x.chunks_mut(n * d)) {
        for stream in streams.chunks_mut(d) {
            for (sum, part) in stream.iter_mut().zip(token) {
                *sum += part;
            }
        }
    }
}

/// RMS norm of each row in place.
unsafe fn normalize(x: &mut [f32], weight: *const f32, width: usize, eps: f32) {
    for row in x.chunks_mut(width) {
        let scale = scale_of(row.as_ptr(), width, eps);
        for (i, value) in row.iter_mut().enumerate() {
            *value *= scale * *weight.add(i);
        }
    }
}

/// What flows between the parts of a layer, of each token in turn.
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
    scores: Vec<f32>,
    /// Of an expert: its tokens' inputs, what is between, and its outputs.
    gathered: Vec<f32>,
    hidden: Vec<f32>,
    up: Vec<f32>,
    made: Vec<f32>,
    /// Every token's outputs of every expert that it takes, in the order of its choice.
    parts: Vec<f32>,
}

impl Scratch {
    fn new(a: &StepArgs) -> Scratch {
        let room = |width: usize| vec![0.0; a.count * width];
        let wide = a.expert_width.max(a.shared_width);
        let taken = a.experts_per_token;
        Scratch {
            input: room(a.width),
            output: room(a.width),
            post: room(a.streams),
            comb: room(a.streams * a.streams),
            phases: room(a.rope),
            low: room(a.q_rank),
            q: room(a.heads * a.head_width),
            kv: room(a.head_width),
            mixed: room(a.heads * a.head_width),
            index_q: room(a.index_heads * a.index_width),
            index_weights: room(a.index_heads),
            picks: vec![0; a.topk],
            grouped: room(a.groups * a.group_rank),
            scores: room(a.experts),
            gathered: room(taken * a.width),
            hidden: room(taken * wide),
            up: room(taken * wide),
            made: room(taken * a.width),
            parts: room(taken * a.width),
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
            tokens: a.count,
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
            tokens: a.count,
            streams: a.streams,
            width: a.width,
            threads: 1,
        });
    }
}

/// out = x W^T for vectors that lie one behind the other.
unsafe fn apply(matrix: Matrix, x: &[f32], out: &mut [f32], outputs: usize, inputs: usize) {
    let v = Vectors {
        x: x.as_ptr(),
        x_stride: inputs,
        out: out.as_mut_ptr(),
        out_stride: outputs,
        count: x.len() / inputs,
    };
    matrix.times(v, outputs, inputs);
}

/// Rotates each token's rows in place, with or without a norm (eps < 0) before.
unsafe fn turn(
    x: &mut [f32],
    weight: *const f32,
    phases: &[f32],
    a: &StepArgs,
    width: usize,
    eps: f32,
    direction: f32,
) {
    norm_rotate(&NormRotateArgs {
        x: x.as_ptr(),
        weight,
        phases: phases.as_ptr(),
        out: x.as_mut_ptr(),
        rows: x.len() / width,
        width,
        rope: a.rope,
        heads: x.len() / width / a.count,
        tokens: a.count,
        threads: 1,
        eps,
        direction,
    });
}

unsafe fn attention(a: &StepArgs, layer: &LayerArgs, s: &mut Scratch) -> bool {
    let (d, c) = (a.width, a.head_width);
    let place = |t: usize| Place {
        position: a.position + t,
        frequencies: layer.frequencies,
        rope: a.rope,
    };
    for (t, phases) in s.phases.chunks_mut(a.rope).enumerate() {
        place(t).phases_at(a.position + t, phases);
    }
    apply(layer.wq_a, &s.input, &mut s.low, a.q_rank, d);
    normalize(&mut s.low, layer.q_norm, a.q_rank, a.norm_eps);
    apply(layer.wq_b, &s.low, &mut s.q, a.heads * c, a.q_rank);
    turn(&mut s.q, null(), &s.phases, a, c, a.norm_eps, 1.0);
    apply(layer.wkv, &s.input, &mut s.kv, c, d);
    turn(&mut s.kv, layer.kv_norm, &s.phases, a, c, a.norm_eps, 1.0);
    let (mut latents, mut keys) = (Vec::new(), Vec::new());
    if layer.compressor.exists() {
        latents = layer.compressor.project(s.input.as_ptr(), a.count, d);
    }
    if layer.indexer.exists() {
        keys = layer.indexer.project(s.input.as_ptr(), a.count, d);
        if (a.position + a.count) / layer.indexer.ratio > a.topk {
            index_queries(a, layer, s);
        }
    }
    for t in 0..a.count {
        store_latent(a, layer, t, &mut s.kv[t * c..][..c]);
        // blocks first: the query sees the block that its own token completes
        let mut blocks = 0;
        let mut picked = false;
        if layer.compressor.exists() {
            let size = 2 * layer.compressor.channels();
            let token = &mut latents[t * size..][..size];
            blocks = layer.compressor.take(token, &place(t), a.norm_eps) as i64;
        }
        if layer.indexer.exists() {
            let size = 2 * layer.indexer.channels();
            layer.indexer.take(&mut keys[t * size..][..size], &place(t), a.norm_eps);
            picked = blocks as usize > a.topk;
            if picked && !choose(a, layer, t, s, blocks) {
                return false;
            }
        }
        attend_token(a, layer, t, s, blocks, picked);
    }
    turn(&mut s.mixed, null(), &s.phases, a, c, -1.0, -1.0);
    let (group, rank) = (a.heads * c / a.groups, a.groups * a.group_rank);
    for g in 0..a.groups {
        let v = Vectors {
            x: s.mixed.as_ptr().add(g * group),
            x_stride: a.heads * c,
            out: s.grouped.as_mut_ptr().add(g * a.group_rank),
            out_stride: rank,
            count: a.count,
        };
        layer.wo_a.from(g * a.group_rank, group).times(v, a.group_rank, group);
    }
    apply(layer.wo_b, &s.grouped, &mut s.output, d, rank);
    true
}

/// Puts a token's latent into the ring, and leaves it as the ring will give it back. Its slot held
/// one that this query and later ones do not see.
unsafe fn store_latent(a: &StepArgs, layer: &LayerArgs, t: usize, kv: &mut [f32]) {
    let (kind, width, rope, page) = (a.kind, a.head_width, a.rope, a.window);
    let ring = Keys { data: layer.ring, kind, width, rope, page };
    let slot = (a.position + t) % a.window;
    ring.store(slot, kv);
    let stored = ring.at(slot);
    for i in (0..width).step_by(8) {
        stored.load(i).store(kv.as_mut_ptr().add(i));
    }
}

unsafe fn attend_token(
    a: &StepArgs,
    layer: &LayerArgs,
    t: usize,
    s: &mut Scratch,
    blocks: i64,
    picked: bool,
) {
    let start = (a.position + t) as i64;
    let row = t * a.heads * a.head_width;
    attend(&AttendArgs {
        q: s.q.as_ptr().add(row),
        sinks: layer.sinks,
        ring: layer.ring,
        kv: s.kv.as_ptr().add(t * a.head_width),
        starts: &start,
        blocks: layer.compressor.entries,
        limits: &blocks,
        picks: if picked { s.picks.as_ptr() } else { null() },
        out: s.mixed.as_mut_ptr().add(row),
        batch: 1,
        tokens: 1,
        heads: a.heads,
        width: a.head_width,
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
}

/// The indexer's queries and the weights of its heads.
unsafe fn index_queries(a: &StepArgs, layer: &LayerArgs, s: &mut Scratch) {
    let (heads, c) = (a.index_heads, a.index_width);
    apply(layer.index_wq_b, &s.low, &mut s.index_q, heads * c, a.q_rank);
    turn(&mut s.index_q, null(), &s.phases, a, c, -1.0, 1.0);
    if layer.indexer.kind == FP4 {
        s.index_q.chunks_mut(c).for_each(hadamard); // as the keys were
    }
    apply(layer.index_weights, &s.input, &mut s.index_weights, heads, a.width);
    let share = 1.0 / ((c * heads) as f32).sqrt();
    s.index_weights.iter_mut().for_each(|weight| *weight *= share);
}

/// The indexer's choice among `blocks` for one token, into `picks`.
unsafe fn choose(
    a: &StepArgs,
    layer: &LayerArgs,
    t: usize,
    s: &mut Scratch,
    blocks: i64,
) -> bool {
    let (heads, c) = (a.index_heads, a.index_width);
    select(&SelectArgs {
        q: s.index_q.as_ptr().add(t * heads * c),
        weights: s.index_weights.as_ptr().add(t * heads),
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

/// A token's use of one expert: which expert, the token, the place in its choice, the weight.
struct Use {
    expert: usize,
    token: usize,
    place: usize,
    weight: f32,
}

/// Routed and shared experts.
unsafe fn feed(a: &StepArgs, layer: &LayerArgs, s: &mut Scratch) -> bool {
    let (d, width, taken) = (a.width, a.expert_width, a.experts_per_token);
    apply(layer.gate, &s.input, &mut s.scores, a.experts, d);
    let mut uses = Vec::with_capacity(a.count * taken);
    for (token, scores) in s.scores.chunks_mut(a.experts).enumerate() {
        if !route(a, layer, token, scores, &mut uses) {
            return false;
        }
    }
    uses.sort_by_key(|u| u.expert);
    for run in uses.chunk_by(|x, y| x.expert == y.expert) {
        for (i, u) in run.iter().enumerate() {
            let token = &s.input[u.token * d..][..d];
            s.gathered[i * d..][..d].copy_from_slice(token);
        }
        let w1 = layer.w1.part(run[0].expert, width, d);
        let w3 = layer.w3.part(run[0].expert, width, d);
        let w2 = layer.w2.part(run[0].expert, d, width);
        let inputs = s.gathered[..run.len() * d].as_ptr();
        let weights: Vec<f32> = run.iter().map(|u| u.weight).collect();
        expert(a, s, inputs, [w1, w3, w2], width, &weights);
        for (i, u) in run.iter().enumerate() {
            let target = (u.token * taken + u.place) * d;
            s.parts[target..target + d].copy_from_slice(&s.made[i * d..][..d]);
        }
    }
    let shared = [layer.shared_w1, layer.shared_w3, layer.shared_w2];
    expert(a, s, s.input.as_ptr(), shared, a.shared_width, &vec![1.0; a.count]);
    for (t, output) in s.output.chunks_mut(d).enumerate() {
        output.fill(0.0);
        for part in s.parts[t * taken * d..][..taken * d].chunks(d).chain([&s.made[t * d..][..d]]) {
            for (sum, x) in output.iter_mut().zip(part) {
                *sum += x;
            }
        }
    }
    true
}

/// The experts of one token; false if a score was no number.
unsafe fn route(
    a: &StepArgs,
    layer: &LayerArgs,
    token: usize,
    scores: &mut [f32],
    uses: &mut Vec<Use>,
) -> bool {
    for score in scores.iter_mut() {
        if score.is_nan() {
            return false;
        }
        *score = softplus(*score).sqrt();
    }
    let mut chosen: Vec<usize> = Vec::with_capacity(a.experts);
    if layer.table.is_null() {
        chosen.extend(0..a.experts);
        // score descending, then the lowest expert
        let rank = |e: usize| scores[e] + *layer.gate_bias.add(e);
        chosen.sort_by(|&x, &y| rank(y).total_cmp(&rank(x)).then(x.cmp(&y)));
        chosen.truncate(a.experts_per_token);
    } else {
        let row = layer.table.add(*a.tokens.add(token) as usize * a.experts_per_token);
        chosen.extend((0..a.experts_per_token).map(|i| *row.add(i) as usize));
    }
    let total: f32 = chosen.iter().map(|&e| scores[e]).sum::<f32>() + 1e-20;
    for (place, &expert) in chosen.iter().enumerate() {
        let weight = scores[expert] / total * a.scaling;
        uses.push(Use { expert, token, place, weight });
    }
    true
}

/// One expert's outputs for some tokens, into `made`.
unsafe fn expert(
    a: &StepArgs,
    s: &mut Scratch,
    inputs: *const f32,
    w: [Matrix; 3],
    width: usize,
    weights: &[f32],
) {
    let count = weights.len();
    let x = std::slice::from_raw_parts(inputs, count * a.width);
    apply(w[0], x, &mut s.hidden, width, a.width);
    apply(w[1], x, &mut s.up, width, a.width);
    for (t, weight) in weights.iter().enumerate() {
        for i in (t * width..(t + 1) * width).step_by(8) {
            let at = s.hidden.as_mut_ptr().add(i);
            let hidden = gated(F8::load(at), F8::load(s.up.as_ptr().add(i)), a.limit);
            hidden.mul(F8::splat(*weight)).store(at);
        }
    }
    apply(w[2], &s.hidden[..count * width], &mut s.made, a.width, width);
}

/// ln(1 + e^x), without loss for large x.
fn softplus(x: f32) -> f32 {
    if x > 20.0 {
        x
    } else {
        x.exp().ln_1p()
    }
}
