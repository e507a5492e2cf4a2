"""Attention over an exact window and compressed blocks, under one softmax with a learned sink.

Blocks are gathered by index or read up to a limit, never masked out of the whole: a query costs its
window and the blocks it attends, whatever else lies before it.
"""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from baleen.kernels.backend import on_gpu
from baleen.kernels.entries import Entries, readable, row_bytes
from baleen.kernels.native import KINDS, AttendArgs, address, serves
from baleen.kernels.precision import widen
from baleen.kernels.ring import latest

QUERY_TILE = 128
"""Queries that share one stretch of window keys; wider tiles waste products on the band's edges."""


class Blocks(NamedTuple):
    """The compressed blocks of a layer and which of them each query attends."""

    entries: Entries
    limits_BT: Tensor
    """int64 [B or 1, T]: a query may see the first so many blocks."""
    picks_BTK: Tensor | None = None
    """int32, ascending, -1 behind the last; None attends all up to the limit."""


class Attended(NamedTuple):
    """What attention gives."""

    out_BTHc: Tensor
    weights_BTHX: Tensor | None
    """If asked for, the joint softmax's weights on the blocks: X = K where blocks were picked, else
    M."""


def attend(
    q_BTHc: Tensor,
    sinks_H: Tensor,
    ring: Entries,
    kv_BTc: Tensor,
    starts_B: Tensor,
    blocks: Blocks | None,
    want_weights: bool = False,
) -> Attended:
    """softmax(q k / sqrt(c)) k over W latents (the query's own token last) and the blocks, fp32.

    `ring` holds the tokens in front of the call, `kv_BTc` the call's own, rounded as they will be
    stored. Rows whose `starts` agree may pass one start for all. The sink, one logit per head,
    enters the denominator only.
    """
    if blocks is not None and blocks.entries.length == 0:
        blocks = None
    kv_BTc = widen(kv_BTc)
    stored = [ring] if blocks is None else [ring, blocks.entries]
    if not want_weights and readable(*stored) and on_gpu(q_BTHc, sinks_H, kv_BTc, ring.data):
        from baleen.kernels.gpu.attend import attend as run

        far = (None, None, None) if blocks is None else blocks
        return Attended(run(q_BTHc, sinks_H, ring, kv_BTc, starts_B, *far), None)
    library = serves(widen(q_BTHc), widen(sinks_H), kv_BTc, width=q_BTHc.shape[-1])
    if library is not None and not want_weights and readable(*stored):
        out = _attend_native(library, widen(q_BTHc), widen(sinks_H), ring, kv_BTc, starts_B, blocks)
        return Attended(out, None)
    window = ring.length
    past = latest(ring.values(), starts_B, window - 1)
    keys_BSc = torch.cat([widen(past), kv_BTc], dim=1)
    outs, weights = [], []
    for start in range(0, q_BTHc.shape[1], QUERY_TILE):
        q = widen(q_BTHc[:, start : start + QUERY_TILE]) / math.sqrt(q_BTHc.shape[-1])
        near = keys_BSc[:, start : start + q.shape[1] + window - 1]
        firsts_B = starts_B - (window - 1) + start
        done = _attend_tile(q, sinks_H, near, firsts_B, _tile(blocks, start))
        outs.append(done.out_BTHc)
        if want_weights and done.weights_BTHX is not None:
            weights.append(done.weights_BTHX)
    if len(outs) == 1:
        return Attended(outs[0], weights[0] if weights else None)
    return Attended(torch.cat(outs, dim=1), torch.cat(weights, dim=1) if weights else None)


def _tile(blocks: Blocks | None, start: int) -> Blocks | None:
    if blocks is None:
        return None
    limits = blocks.limits_BT[:, start : start + QUERY_TILE]
    picks = blocks.picks_BTK
    return Blocks(
        blocks.entries, limits, None if picks is None else picks[:, start : start + QUERY_TILE]
    )


def _attend_tile(
    q_BTHc: Tensor, sinks_H: Tensor, near_BSc: Tensor, firsts_B: Tensor, blocks: Blocks | None
) -> Attended:
    """One tile of queries; `near` begins at position `firsts`, which may lie before the text."""
    heads = q_BTHc.shape[2]
    flat_BLc = q_BTHc.flatten(1, 2)
    window_BTHS = (flat_BLc @ near_BSc.transpose(1, 2)).unflatten(1, (-1, heads))
    window_BTHS = window_BTHS.masked_fill(
        ~_band(q_BTHc.shape[1], near_BSc.shape[1], firsts_B).unsqueeze(2), -torch.inf
    )
    sink_BTH1 = widen(sinks_H).view(1, 1, -1, 1).expand(*q_BTHc.shape[:2], -1, 1)
    if blocks is None:
        joint = torch.cat([window_BTHS, sink_BTH1], dim=-1).softmax(-1)
        near_BTHS, far_BTHX = joint[..., :-1], joint[..., :0]
        return Attended(_mix(near_BTHS, near_BSc), far_BTHX)
    if blocks.picks_BTK is None:
        values = widen(blocks.entries.values())
        far_logits = (flat_BLc @ values.transpose(1, 2)).unflatten(1, (-1, heads))
        block_M = torch.arange(values.shape[1], device=values.device)
        hidden = block_M >= blocks.limits_BT.unsqueeze(-1)
    else:
        values = widen(blocks.entries.gather(blocks.picks_BTK))
        far_logits = q_BTHc @ values.transpose(2, 3)
        hidden = blocks.picks_BTK < 0
    far_logits = far_logits.masked_fill(hidden.unsqueeze(2), -torch.inf)
    joint = torch.cat([window_BTHS, far_logits, sink_BTH1], dim=-1).softmax(-1)
    near_BTHS, far_BTHX, _ = joint.split([near_BSc.shape[1], far_logits.shape[-1], 1], dim=-1)
    far = _mix(far_BTHX, values) if blocks.picks_BTK is None else far_BTHX @ values
    return Attended(_mix(near_BTHS, near_BSc) + far, far_BTHX)


def _mix(weights_BTHS: Tensor, keys_BSc: Tensor) -> Tensor:
    mixed: Tensor = (weights_BTHS.flatten(1, 2) @ keys_BSc).unflatten(1, weights_BTHS.shape[1:3])
    return mixed


def _band(num_queries: int, num_keys: int, firsts_B: Tensor) -> Tensor:
    """[B or 1, T, S]: key s is one of query t's W latest, and not from before the text."""
    key_S = torch.arange(num_keys, device=firsts_B.device)
    distance_TS = key_S - key_S[:num_queries].unsqueeze(1)
    near_TS = (distance_TS >= 0) & (distance_TS <= num_keys - num_queries)
    real_BS = firsts_B.unsqueeze(1) + key_S >= 0
    return near_TS & real_BS.unsqueeze(1)


def _attend_native(
    library: ctypes.CDLL,
    q_BTHc: Tensor,
    sinks_H: Tensor,
    ring: Entries,
    kv_BTc: Tensor,
    starts_B: Tensor,
    blocks: Blocks | None,
) -> Tensor:
    batch, tokens, heads, width = q_BTHc.shape
    q, kv, layout = q_BTHc.contiguous(), kv_BTc.contiguous(), ring.layout
    out = torch.empty_like(q)
    args = AttendArgs(
        q=address(q),
        sinks=address(sinks_H),
        ring=address(ring.data),
        kv=address(kv),
        starts=address(starts_B),
        out=address(out),
        batch=batch,
        tokens=tokens,
        heads=heads,
        width=width,
        window=ring.length,
        kind=KINDS[layout.kind],
        rope=layout.rope,
        starts_stride=int(len(starts_B) > 1),
        ring_stride=row_bytes(ring),
        threads=torch.get_num_threads(),
    )
    if blocks is not None:
        limits = blocks.limits_BT.contiguous()
        args.blocks = address(blocks.entries.data)
        args.blocks_stride = row_bytes(blocks.entries)
        args.page = blocks.entries.layout.page
        args.limits = address(limits)
        args.limits_stride = tokens if len(limits) > 1 else 0
        if blocks.picks_BTK is not None:
            picks = blocks.picks_BTK.contiguous()
            args.picks, args.topk = address(picks), picks.shape[-1]
    library.baleen_attend(ctypes.byref(args))
    return out
