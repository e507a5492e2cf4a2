//! Attention of a run of tokens: window and blocks, the choice among them, and what it leaves.

use super::clock::Part;
use super::piece::{normalize, ring_of, Member};
use super::scratch::Scratch;
use super::LayerArgs;
use crate::attend::{attend_run, AttendArgs};
use crate::keys::{Keys, FP4, FP8};
use crate::matrix::{Matrix, Vectors, Work};
use crate::packing::hadamard;
use crate::pool::{phases_at, Place};
use crate::rows::{norm_rotate, NormRotateArgs};
use crate::select::{select_run, SelectArgs};
use std::ptr::{copy_nonoverlapping, null};

pub unsafe fn attention(m: &Member, layer: &LayerArgs, s: &mut Scratch) {
    let (a, d, c) = (m.a, m.a.width, m.a.head_width);
    let phases = phases_of(m, layer, s);
    let times = |matrix: Matrix, x: &[f32], out: &mut [f32], outputs, inputs, work: &mut Work| {
        matrix.times(m.vectors(x, out, outputs, inputs), outputs, inputs, work)
    };
    times(layer.wq_a, &s.input, &mut s.low, a.q_rank, d, &mut s.work);
    normalize(&mut s.low, layer.q_norm, a.q_rank, a.norm_eps);
    times(layer.wq_b, &s.low, &mut s.q, a.heads * c, a.q_rank, &mut s.work);
    turn(m, &mut s.q, null(), &s.phases[phases].1, c, a.norm_eps, 1.0);
    times(layer.wkv, &s.input, &mut s.kv, c, d, &mut s.work);
    turn(m, &mut s.kv, layer.kv_norm, &s.phases[phases].1, c, a.norm_eps, 1.0);
    keep_latents(m, s);
    m.lap(Part::Project);
    if layer.compressor.exists() {
        let out = m.latents.get().add(m.begin * layer.compressor.taken());
        layer.compressor.project(m.vectors(&s.input, &mut [], 0, d), out, d, &mut s.work);
    }
    let mut chooses = false;
    if layer.indexer.exists() {
        let out = m.keys.get().add(m.begin * layer.indexer.taken());
        layer.indexer.project(m.vectors(&s.input, &mut [], 0, d), out, d, &mut s.work);
        chooses = (m.position() + m.count) / layer.indexer.ratio > a.topk;
        m.lap(Part::Compress);
        if chooses {
            index_queries(m, layer, s, phases);
        }
        m.lap(Part::Select);
    }
    m.wait(); // for everyone's projections
    compress(m, layer);
    m.wait(); // for the blocks
    m.lap(Part::Compress);
    if layer.compressor.exists() {
        for (t, limit) in s.limits.iter_mut().enumerate() {
            *limit = ((m.position() + t + 1) / layer.compressor.ratio) as i64;
        }
    }
    if chooses {
        choose(m, layer, s);
        m.lap(Part::Select);
    }
    attend_all(m, layer, s, chooses);
    m.wait(); // until nobody reads the ring any more
    m.lap(Part::Attend);
    fill_ring(m, layer);
    turn(m, &mut s.mixed, null(), &s.phases[phases].1, c, -1.0, -1.0);
    let (group, rank) = (a.heads * c / a.groups, a.groups * a.group_rank);
    for g in 0..a.groups {
        let v = Vectors {
            x: s.mixed.as_ptr().add(g * group),
            x_stride: a.heads * c,
            out: s.grouped.as_mut_ptr().add(g * a.group_rank),
            out_stride: rank,
            count: m.count,
            many: m.many,
            narrow: a.narrow,
        };
        layer.wo_a.from(g * a.group_rank, group).times(v, a.group_rank, group, &mut s.work);
    }
    times(layer.wo_b, &s.grouped, &mut s.output, d, rank, &mut s.work);
    m.lap(Part::Project);
}

/// Which of the scratch's phases are this layer's; layers of a kind share them.
unsafe fn phases_of(m: &Member, layer: &LayerArgs, s: &mut Scratch) -> usize {
    let rope = m.a.rope;
    let frequencies = std::slice::from_raw_parts(layer.frequencies, rope / 2);
    if let Some(number) = s.phases.iter().position(|(held, _)| held == frequencies) {
        return number;
    }
    let mut phases = vec![0.0; m.count * rope];
    for (t, phases) in phases.chunks_mut(rope).enumerate() {
        phases_at(m.position() + t, frequencies, phases);
    }
    s.phases.push((frequencies.to_vec(), phases));
    s.phases.len() - 1
}

/// Rotates each token's rows in place, with or without a norm (eps < 0) before.
unsafe fn turn(
    m: &Member,
    x: &mut [f32],
    weight: *const f32,
    phases: &[f32],
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
        rope: m.a.rope,
        heads: x.len() / width / m.count,
        tokens: m.count,
        threads: 1,
        eps,
        direction,
    });
}

/// A run's latents as the ring will give them back, for all threads to see.
unsafe fn keep_latents(m: &Member, s: &mut Scratch) {
    let (a, c) = (m.a, m.a.head_width);
    let kind = m.kv_kind();
    let kept = Keys { data: m.kv.get(), kind, width: c, rope: a.rope, page: 1 };
    let data = s.entry.as_mut_ptr();
    let packed = Keys { data, kind: a.kind, width: c, rope: a.rope, page: 1 };
    for (t, latent) in s.kv.chunks_mut(c).enumerate() {
        if a.kind == FP8 {
            packed.store(0, latent);
            for i in (0..c).step_by(8) {
                packed.at(0).load(i).store(latent.as_mut_ptr().add(i));
            }
        }
        kept.store(m.begin + t, latent);
    }
}

/// The piece's tokens into the compressors, in their order.
unsafe fn compress(m: &Member, layer: &LayerArgs) {
    let a = m.a;
    let frequencies = std::slice::from_raw_parts(layer.frequencies, a.rope / 2);
    let parts = [(layer.compressor, m.latents, m.is_first), (layer.indexer, m.keys, m.is_last)];
    for (compressor, taken, is_mine) in parts {
        if is_mine && compressor.exists() {
            let tokens = std::slice::from_raw_parts_mut(taken.get(), a.count * compressor.taken());
            let place = Place { position: a.position, frequencies };
            compressor.take_all(tokens, place, a.norm_eps);
        }
    }
}

/// The indexer's queries and the weights of its heads.
unsafe fn index_queries(m: &Member, layer: &LayerArgs, s: &mut Scratch, phases: usize) {
    let (a, heads, c) = (m.a, m.a.index_heads, m.a.index_width);
    let v = m.vectors(&s.low, &mut s.index_q, heads * c, a.q_rank);
    layer.index_wq_b.times(v, heads * c, a.q_rank, &mut s.work);
    turn(m, &mut s.index_q, null(), &s.phases[phases].1, c, -1.0, 1.0);
    if layer.indexer.kind == FP4 {
        s.index_q.chunks_mut(c).for_each(hadamard); // as the keys were
    }
    let v = m.vectors(&s.input, &mut s.index_weights, heads, a.width);
    layer.index_weights.times(v, heads, a.width, &mut s.work);
    let share = 1.0 / ((c * heads) as f32).sqrt();
    s.index_weights.iter_mut().for_each(|weight| *weight *= share);
}

/// The indexer's choice for each token, into `picks`.
unsafe fn choose(m: &Member, layer: &LayerArgs, s: &mut Scratch) {
    let a = m.a;
    let args = SelectArgs {
        q: s.index_q.as_ptr(),
        weights: s.index_weights.as_ptr(),
        keys: layer.indexer.entries,
        limits: s.limits.as_ptr(),
        picks: s.picks.as_mut_ptr(),
        batch: 1,
        tokens: m.count,
        heads: a.index_heads,
        width: a.index_width,
        topk: a.topk,
        kind: layer.indexer.kind,
        page: layer.indexer.page,
        limits_stride: 0,
        keys_stride: 0,
        threads: 1,
        narrow: a.narrow,
    };
    if !select_run(&args, 0, 0, m.count, s.picks.as_mut_ptr(), &mut s.select) {
        m.fail();
    }
}

/// Each query over its window and its blocks, into `mixed`.
unsafe fn attend_all(m: &Member, layer: &LayerArgs, s: &mut Scratch, chosen: bool) {
    let a = m.a;
    let start = a.position as i64;
    // the kernel counts queries from the piece's first
    let row = m.begin * a.heads * a.head_width;
    let limits = s.limits.as_ptr().wrapping_sub(m.begin);
    let picks = s.picks.as_ptr().wrapping_sub(m.begin * a.topk);
    let args = AttendArgs {
        q: s.q.as_ptr().wrapping_sub(row),
        sinks: layer.sinks,
        ring: layer.ring,
        kv: m.kv.get(),
        starts: &start,
        blocks: layer.compressor.entries,
        limits: if layer.compressor.exists() { limits } else { null() },
        picks: if chosen { picks } else { null() },
        out: s.mixed.as_mut_ptr().wrapping_sub(row),
        batch: 1,
        tokens: a.count,
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
        kv_kind: m.kv_kind(),
        narrow: a.narrow,
    };
    attend_run(&args, 0, m.begin, m.begin + m.count, &mut s.attend, args.out);
}

/// The run's latents that later calls see, into the ring.
unsafe fn fill_ring(m: &Member, layer: &LayerArgs) {
    let a = m.a;
    let ring = ring_of(a, layer);
    let kept = Keys { data: m.kv.get(), kind: m.kv_kind(), page: 1, ..ring };
    let mut latent = vec![0.0; a.head_width];
    for t in m.begin.max(a.count.saturating_sub(a.window))..m.begin + m.count {
        let (from, slot) = (kept.at(t), (a.position + t) % a.window);
        if a.kind != FP8 {
            let to = ring.at(slot).bytes() as *mut u8;
            copy_nonoverlapping(from.bytes(), to, ring.code_bytes());
            continue;
        }
        for i in (0..a.head_width).step_by(8) {
            from.load(i).store(latent.as_mut_ptr().add(i));
        }
        ring.store(slot, &mut latent);
    }
}
