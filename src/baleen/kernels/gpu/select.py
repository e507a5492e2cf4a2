"""Scores of blocks and the choice of the best, in the reference's total order; see
`kernels/select.py`.

Scores: a program decodes a stretch of keys once and holds it against several queries. Choice: a
program finds the bar, the k-th best score of its query, eight bits at a time by counting, then
walks the scores once more and writes the chosen blocks in ascending order. Ties at the bar go to
the lowest blocks, as the walk meets them first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from baleen.kernels.entries import Entries
from baleen.kernels.gpu.codes import entries, multiply
from baleen.kernels.native import KINDS

KEYS = 64
"""Keys that a program scores."""
QUERIES = 8
"""Queries that it scores them for."""
WALK = 1024
"""Scores to a step of the choice."""


@triton.jit
def _score(
    q_BTHc,
    weights_BTH,
    keys,
    limits_BT,
    scores_BTM,
    tokens,
    heads,
    count,
    limits_stride,
    keys_stride,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    EXACT: tl.constexpr,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    runs = tl.cdiv(tokens, QUERIES)
    row, run = tl.program_id(1) // runs, tl.program_id(1) % runs
    block = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    mine = keys + row.to(tl.int64) * keys_stride
    keys_Nc = entries(mine, mine, block, block < count, KIND, WIDTH, 0, PAGE, COLUMNS)
    head, column = tl.arange(0, HEADS), tl.arange(0, COLUMNS)
    for number in range(QUERIES):
        token = run * QUERIES + number
        inside = token < tokens
        limit = tl.load(limits_BT + row * limits_stride + token, mask=inside, other=0)
        if limit > tl.program_id(0) * KEYS:
            query = row.to(tl.int64) * tokens + token
            at = (query * heads + head)[None, :] * WIDTH + column[:, None]
            known = (head < heads)[None, :] & (column < WIDTH)[:, None]
            q = tl.load(q_BTHc + at, mask=known, other=0.0)
            dots = multiply(keys_Nc.to(q.dtype), q, tl.zeros((KEYS, HEADS), tl.float32), EXACT)
            weight = tl.load(weights_BTH + query * heads + head, mask=head < heads, other=0.0)
            # what is no number stays none
            parts = tl.where(dots < 0, 0.0, dots) * weight[None, :].to(tl.float32)
            scores = tl.sum(parts, axis=1)
            tl.store(scores_BTM + query * count + block, scores, mask=block < limit)


@triton.jit
def _ordered(scores):
    """uint32, greater for greater scores; both zeros are one."""
    bits = (scores + 0.0).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, ~bits, bits | 0x80000000)


@triton.jit
def _choose(
    scores_BTM,
    limits_BT,
    picks_BTK,
    broken_BT,
    tokens,
    count,
    topk,
    limits_stride,
    WALK: tl.constexpr,
):
    query = tl.program_id(0)
    row, token = query // tokens, query % tokens
    limit = tl.load(limits_BT + row * limits_stride + token).to(tl.int32)
    scores = scores_BTM + query.to(tl.int64) * count
    picks = picks_BTK + query.to(tl.int64) * topk
    left = tl.minimum(topk, limit)
    digit, lane = tl.arange(0, 512), tl.arange(0, WALK)
    bar = tl.zeros((), tl.uint32)
    broken = tl.zeros((), tl.int32)
    for part in tl.static_range(4):
        counts = tl.zeros((512,), tl.int32)
        for step in range(0, limit, WALK):
            inside = step + lane < limit
            score = tl.load(scores + step + lane, mask=inside, other=0.0)
            key = _ordered(score)
            counted = inside
            if part == 0:
                broken += tl.sum((inside & (score != score)).to(tl.int32))
            else:
                counted = inside & ((key >> (32 - 8 * part)) == bar)
            here = ((key >> (24 - 8 * part)) & 255).to(tl.int32)
            # what does not count falls into a bin of its own, below all others
            counts += tl.histogram(tl.where(counted, here + 256, 0), 512)
        counts = tl.where(digit < 256, 0, counts)
        at_least = tl.cumsum(counts, 0, reverse=True)
        best = tl.sum((at_least >= left).to(tl.int32)) - 1
        best = tl.maximum(best, 256)
        left -= tl.sum(tl.where(digit == best, at_least - counts, 0))
        bar = (bar << 8) | (best - 256).to(tl.uint32)
    tl.store(broken_BT + query, broken)
    written = tl.zeros((), tl.int32)
    level = tl.zeros((), tl.int32)
    for step in range(0, limit, WALK):
        inside = step + lane < limit
        key = _ordered(tl.load(scores + step + lane, mask=inside, other=0.0))
        equal = (inside & (key == bar)).to(tl.int32)
        rank = level + tl.cumsum(equal, 0)
        chosen = inside & ((key > bar) | ((equal == 1) & (rank <= left)))
        place = written + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(picks + place, step + lane, mask=chosen)
        written += tl.sum(chosen.to(tl.int32))
        level += tl.sum(equal)


def score(q_BTHc: Tensor, weights_BTH: Tensor, keys: Entries, limits_BT: Tensor) -> Tensor:
    """fp32 [B, T, M]; what a query may not see is left unwritten."""
    batch, tokens, heads, width = q_BTHc.shape
    out = torch.empty(batch, tokens, keys.length, dtype=torch.float32, device=q_BTHc.device)
    queries = min(QUERIES, tokens)
    _score[(triton.cdiv(keys.length, KEYS), batch * triton.cdiv(tokens, queries))](
        q_BTHc.contiguous(),
        weights_BTH.contiguous(),
        keys.data,
        limits_BT,
        out,
        tokens,
        heads,
        keys.length,
        tokens if len(limits_BT) > 1 else 0,
        keys.data.stride(0),
        KIND=KINDS[keys.layout.kind],
        WIDTH=width,
        PAGE=keys.layout.page,
        EXACT=q_BTHc.dtype == torch.float32,
        HEADS=max(16, triton.next_power_of_2(heads)),
        QUERIES=queries,
        KEYS=KEYS,
        COLUMNS=max(16, triton.next_power_of_2(width)),
    )
    return out


def choose(scores_BTM: Tensor, limits_BT: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """int32 [B, T, K], ascending, then -1; and how many of each query's scores are no numbers."""
    batch, tokens, count = scores_BTM.shape
    kept = min(topk, count)
    picks = torch.full((batch, tokens, kept), -1, dtype=torch.int32, device=scores_BTM.device)
    broken = torch.empty(batch, tokens, dtype=torch.int32, device=scores_BTM.device)
    _choose[(batch * tokens,)](
        scores_BTM,
        limits_BT,
        picks,
        broken,
        tokens,
        count,
        kept,
        tokens if len(limits_BT) > 1 else 0,
        WALK=WALK,
    )
    return picks, broken
