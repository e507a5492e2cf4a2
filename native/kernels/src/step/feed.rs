//! Routed and shared experts of a run of tokens.

use super::piece::Member;
use super::scratch::Scratch;
use super::LayerArgs;
use crate::matrix::{room, Matrix};
use crate::rows::{gate, GateArgs};

/// A token's use of one expert: which expert, the token, the weight.
struct Use {
    expert: usize,
    token: usize,
    weight: f32,
}

/// A token's sum begins with the shared expert and takes the routed ones in their order.
pub unsafe fn feed(m: &Member, layer: &LayerArgs, s: &mut Scratch) {
    let (a, d, width) = (m.a, m.a.width, m.a.expert_width);
    let mut v = m.vectors(&s.input, &mut s.scores, a.experts, d);
    v.narrow = false; // scores decide
    layer.gate.times(v, a.experts, d, &mut s.work);
    let mut uses = Vec::with_capacity(m.count * a.experts_per_token);
    for (token, scores) in s.scores.chunks_mut(a.experts).enumerate() {
        route(m, layer, token, scores, &mut uses);
    }
    let shared = [layer.shared_w1, layer.shared_w3, layer.shared_w2];
    let weights = vec![1.0; m.count];
    let (inputs, output) = (std::mem::take(&mut s.input), &mut std::mem::take(&mut s.output));
    expert(m, s, &inputs, shared, a.shared_width, &weights, output);
    uses.sort_by_key(|u| u.expert);
    let (mut gathered, mut made) = (std::mem::take(&mut s.gathered), std::mem::take(&mut s.made));
    let mut rest = &uses[..];
    while let Some(first) = rest.first() {
        let run;
        (run, rest) = rest.split_at(rest.partition_point(|u| u.expert == first.expert));
        let rows = room(&mut gathered, run.len() * d);
        for (row, u) in rows.chunks_mut(d).zip(run) {
            row.copy_from_slice(&inputs[u.token * d..][..d]);
        }
        let w1 = layer.w1.part(first.expert, width, d);
        let w3 = layer.w3.part(first.expert, width, d);
        let w2 = layer.w2.part(first.expert, d, width);
        let weights: Vec<f32> = run.iter().map(|u| u.weight).collect();
        let made = room(&mut made, run.len() * d);
        expert(m, s, rows, [w1, w3, w2], width, &weights, made);
        for (row, u) in made.chunks(d).zip(run) {
            for (sum, x) in output[u.token * d..][..d].iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
    (s.gathered, s.made, s.input) = (gathered, made, inputs);
    s.output = std::mem::take(output);
}

/// The experts of one token.
unsafe fn route(
    m: &Member,
    layer: &LayerArgs,
    token: usize,
    scores: &mut [f32],
    uses: &mut Vec<Use>,
) {
    let (a, taken) = (m.a, m.a.experts_per_token);
    for score in scores.iter_mut() {
        if score.is_nan() {
            m.fail();
        }
        *score = softplus(*score).sqrt();
    }
    let mut chosen: Vec<usize> = Vec::with_capacity(a.experts);
    if layer.table.is_null() {
        chosen.extend(0..a.experts);
        // score descending, then the lowest expert
        let rank = |e: usize| scores[e] + *layer.gate_bias.add(e);
        chosen.sort_by(|&x, &y| rank(y).total_cmp(&rank(x)).then(x.cmp(&y)));
        chosen.truncate(taken);
    } else {
        let row = layer.table.add(*a.tokens.add(m.begin + token) as usize * taken);
        chosen.extend((0..taken).map(|i| *row.add(i) as usize));
    }
    let total: f32 = chosen.iter().map(|&e| scores[e]).sum::<f32>() + 1e-20;
    for &expert in &chosen {
        let weight = scores[expert] / total * a.scaling;
        uses.push(Use { expert, token, weight });
    }
}

/// One expert's outputs for some rows.
unsafe fn expert(
    m: &Member,
    s: &mut Scratch,
    inputs: &[f32],
    w: [Matrix; 3],
    width: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let (count, d) = (weights.len(), m.a.width);
    let hidden = room(&mut s.hidden, count * width);
    let up = room(&mut s.up, count * width);
    w[0].times(m.vectors(inputs, hidden, width, d), width, d, &mut s.work);
    w[1].times(m.vectors(inputs, up, width, d), width, d, &mut s.work);
    gate(&GateArgs {
        gate: hidden.as_ptr(),
        up: up.as_ptr(),
        weights: weights.as_ptr(),
        out: hidden.as_mut_ptr(),
        rows: count,
        width,
        threads: 1,
        limit: m.a.limit,
    });
    w[2].times(m.vectors(hidden, out, d, width), d, width, &mut s.work);
}

/// ln(1 + e^x), without loss for large x.
fn softplus(x: f32) -> f32 {
    if x > 20.0 {
        x
    } else {
        x.exp().ln_1p()
    }
}
