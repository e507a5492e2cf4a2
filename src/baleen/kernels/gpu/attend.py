"""Attention by gather, one query and a group of its heads to a program; see `kernels/attend.py`.

A program walks its keys once, window first, under a running softmax that begins with the sink. No
sum is split over programs, so a query's result does not depend on what else a call holds. Queries
in bf16 are multiplied in bf16, which loses nothing of packed keys: an E4M3 number times a power of
two is a bf16 number. Queries in fp32 are multiplied in fp32.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from baleen.kernels.entries import Entries
from baleen.kernels.gpu.codes import entries, multiply
from baleen.kernels.native import KINDS

HEADS, EXACT_HEADS = 64, 16
"""To a program. More share each key, fewer leave room for fp32 products."""
KEYS = 16
"""To a step. With twice as many, registers spill."""
WARPS = 8


@triton.jit
def _take(q, keys, valid, peak, total, mixed, scale, EXACT: tl.constexpr):
    """Goes on with the running softmax over some keys."""
    logits = tl.zeros((q.shape[0], keys.shape[0]), tl.float32)
    logits = multiply(q, tl.trans(keys), logits, EXACT) * scale
    logits = tl.where(valid[None, :], logits, float("-inf"))
    higher = tl.maximum(peak, tl.max(logits, axis=1))
    kept = tl.exp(peak - higher)
    weights = tl.exp(logits - higher[:, None])
    total = total * kept + tl.sum(weights, axis=1)
    mixed = multiply(weights.to(q.dtype), keys, mixed * kept[:, None], EXACT)
    return higher, total, mixed


@triton.jit
def _attend(
    q_BTHc,
    sinks_H,
    ring,
    ring_halves,
    kv_BTc,
    starts_B,
    blocks,
    blocks_halves,
    limits_BT,
    picks_BTK,
    out_BTHc,
    tokens,
    heads,
    window,
    topk,
    starts_stride,
    limits_stride,
    ring_stride,
    blocks_stride,
    scale,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    ROPE: tl.constexpr,
    WINDOW: tl.constexpr,
    PAGE: tl.constexpr,
    FAR: tl.constexpr,
    PICKED: tl.constexpr,
    EXACT: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    query = tl.program_id(0)
    row, token = query // tokens, query % tokens
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, COLUMNS)
    inside = (head < heads)[:, None] & (column < WIDTH)[None, :]
    at = (query.to(tl.int64) * heads + head)[:, None] * WIDTH + column[None, :]
    q = tl.load(q_BTHc + at, mask=inside, other=0.0)
    peak = tl.load(sinks_H + head, mask=head < heads, other=0.0).to(tl.float32)
    total = tl.full((HEADS,), 1.0, tl.float32)  # the sink's own share
    mixed = tl.zeros((HEADS, COLUMNS), tl.float32)

    start = tl.load(starts_B + row * starts_stride).to(tl.int32)
    first = start + token - window + 1
    near, near_halves = ring + row.to(tl.int64) * ring_stride, ring_halves
    if KIND == 2:
        near_halves = ring_halves + row.to(tl.int64) * (ring_stride // 2)
    own = kv_BTc + row.to(tl.int64) * tokens * WIDTH
    for step in range(0, window, KEYS):
        position = first + step + tl.arange(0, KEYS)
        valid = (position >= 0) & (position <= start + token)
        past = valid & (position < start)
        slot = tl.maximum(position, 0) % window
        keys = entries(near, near_halves, slot, past, KIND, WIDTH, ROPE, WINDOW, COLUMNS)
        new = valid & (position >= start)
        place = (position - start)[:, None] * WIDTH + column[None, :]
        keys += tl.load(own + place, mask=new[:, None] & (column < WIDTH)[None, :], other=0.0)
        peak, total, mixed = _take(q, keys, valid, peak, total, mixed, scale, EXACT)

    if FAR:
        far, far_halves = blocks + row.to(tl.int64) * blocks_stride, blocks_halves
        if KIND == 2:
            far_halves = blocks_halves + row.to(tl.int64) * (blocks_stride // 2)
        count = tl.load(limits_BT + row * limits_stride + token).to(tl.int32)
        if PICKED:
            count = tl.minimum(count, topk)
        for step in range(0, count, KEYS):
            place = step + tl.arange(0, KEYS)
            valid = place < count
            if PICKED:
                place = tl.load(picks_BTK + query.to(tl.int64) * topk + place, valid, other=-1)
                valid = place >= 0
                place = tl.maximum(place, 0)
            keys = entries(far, far_halves, place, valid, KIND, WIDTH, ROPE, PAGE, COLUMNS)
            peak, total, mixed = _take(q, keys, valid, peak, total, mixed, scale, EXACT)
    tl.store(out_BTHc + at, mixed / total[:, None], mask=inside)


def attend(
    q_BTHc: Tensor,
    sinks_H: Tensor,
    ring: Entries,
    kv_BTc: Tensor,
    starts_B: Tensor,
    far: Entries | None,
    limits_BT: Tensor | None,
    picks_BTK: Tensor | None,
) -> Tensor:
    """fp32 [B, T, H, c]; arguments as of the reference, `Blocks` taken apart."""
    batch, tokens, heads, width = q_BTHc.shape
    q = q_BTHc.contiguous()
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    layout = ring.layout
    blocks = ring if far is None else far
    limits = starts_B if limits_BT is None else limits_BT.contiguous()
    picks = starts_B if picks_BTK is None else picks_BTK.contiguous()
    exact = q.dtype == torch.float32
    fits = max(16, triton.next_power_of_2(heads))
    grouped = min(fits, EXACT_HEADS if exact else HEADS)
    _attend[(batch * tokens, triton.cdiv(heads, grouped))](
        q,
        sinks_H,
        ring.data,
        halves(ring),
        kv_BTc.contiguous(),
        starts_B,
        blocks.data,
        halves(blocks),
        limits,
        picks,
        out,
        tokens,
        heads,
        ring.length,
        0 if picks_BTK is None else picks.shape[-1],
        int(len(starts_B) > 1),
        tokens if limits_BT is not None and len(limits) > 1 else 0,
        ring.data.stride(0),
        blocks.data.stride(0),
        1.0 / math.sqrt(width),
        KIND=KINDS[layout.kind],
        WIDTH=width,
        ROPE=layout.rope,
        WINDOW=layout.page,
        PAGE=blocks.layout.page,
        FAR=far is not None,
        PICKED=picks_BTK is not None,
        EXACT=exact,
        HEADS=grouped,
        KEYS=KEYS,
        COLUMNS=max(16, triton.next_power_of_2(width)),
        num_warps=WARPS,
    )
    return out


def halves(list_: Entries) -> Tensor:
    """The same memory as bf16 numbers, for the rotary part of fp8 entries."""
    return list_.data.view(torch.bfloat16) if list_.data.dtype == torch.uint8 else list_.data
