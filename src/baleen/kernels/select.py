"""Which compressed blocks a query attends: score every visible one, keep the best.

score(t, i) = sum_h w_h relu(q_h . k_i). The order is total: score descending, then lowest block
first. It sees nothing but a query's own visible blocks, so prefill, chunks, decode and any batch
choose the same set. Source: DeepSeek-V3.2 report section 2.1.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from baleen.errors import NumericsError
from baleen.kernels.backend import on_gpu
from baleen.kernels.entries import Entries, readable, row_bytes
from baleen.kernels.kind import Kind
from baleen.kernels.native import KINDS, SelectArgs, address, serves
from baleen.kernels.packing import hadamard
from baleen.kernels.precision import widen

TILE_ELEMENTS = 1 << 22
"""At most so many scores of single heads at once (16 MiB of fp32)."""
GPU_TILE_ELEMENTS = 1 << 28
"""At most so many scores at once on a GPU (1 GiB)."""


def nan_score() -> NumericsError:
    """The error for scores that cannot be put in order."""
    return NumericsError(
        "indexer scores hold NaN", remedy="the weights or inputs are broken; look for huge values"
    )


def select_blocks(
    q_BTHc: Tensor, weights_BTH: Tensor, keys: Entries, limits_BT: Tensor, topk: int
) -> Tensor:
    """The `topk` best of each query's first `limits` blocks: int32 [B, T, K], ascending, then -1.

    `limits_BT` may be [1, T]. Costs O(T M H c) time and bounded memory beside the result.

    Raises:
        NumericsError: a score is NaN.
    """
    if keys.layout.kind is Kind.FP4:
        q_BTHc = hadamard(q_BTHc).to(q_BTHc.dtype)  # as the keys were
    if keys.length and readable(keys) and on_gpu(q_BTHc, weights_BTH, keys.data):
        return _select_on_gpu(q_BTHc, weights_BTH, keys, limits_BT.contiguous(), topk)
    library = serves(widen(q_BTHc), widen(weights_BTH), width=q_BTHc.shape[-1])
    if library is not None and readable(keys):
        return _select_native(library, widen(q_BTHc), widen(weights_BTH), keys, limits_BT, topk)
    per_query = max(1, q_BTHc.shape[0] * q_BTHc.shape[2] * keys.length)
    step = max(1, TILE_ELEMENTS // per_query)
    limits_BT = limits_BT.expand(q_BTHc.shape[0], -1)
    parts, keys_BMc = [], keys.values()
    for start in range(0, q_BTHc.shape[1], step):
        tile = slice(start, start + step)
        scores = score_blocks(q_BTHc[:, tile], weights_BTH[:, tile], keys_BMc)
        parts.append(best_blocks(scores, limits_BT[:, tile], topk))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def score_blocks(q_BTHc: Tensor, weights_BTH: Tensor, keys_BMc: Tensor) -> Tensor:
    """fp32 [B, T, M], differentiable; a block that a query may not see has a score all the same."""
    dots_BLM = widen(q_BTHc.flatten(1, 2)) @ widen(keys_BMc).transpose(1, 2)
    dots_BTHM = dots_BLM.unflatten(1, q_BTHc.shape[1:3]).relu()
    scores: Tensor = (weights_BTH.unsqueeze(-2) @ dots_BTHM).squeeze(-2)
    return scores


def best_blocks(scores_BTM: Tensor, limits_BT: Tensor, topk: int) -> Tensor:
    """The selection alone; see `select_blocks`.

    The k-th best score splits the blocks: all above it are in, of those equal to it the lowest.
    A library's own top-k would break ties by shape.
    """
    num_blocks = scores_BTM.shape[-1]
    block_M = torch.arange(num_blocks, device=scores_BTM.device)
    visible = block_M < limits_BT.unsqueeze(-1)
    ranked = (scores_BTM.detach() + 0.0).masked_fill(~visible, -torch.inf)
    if torch.isnan(ranked).any():
        raise nan_score()
    kept = min(topk, num_blocks)
    bar = ranked.topk(kept, dim=-1).values[..., -1:]
    above, level = ranked > bar, ranked == bar
    room = kept - above.sum(-1, keepdim=True)
    chosen = (above | (level & (level.cumsum(-1) <= room))) & visible
    order = torch.where(chosen, block_M, num_blocks)
    picks = order.topk(kept, dim=-1, largest=False, sorted=True).values
    return torch.where(picks < num_blocks, picks, -1).to(torch.int32)


def _select_on_gpu(
    q_BTHc: Tensor, weights_BTH: Tensor, keys: Entries, limits_BT: Tensor, topk: int
) -> Tensor:
    from baleen.kernels.gpu.select import choose, score

    per_query = len(q_BTHc) * keys.length
    step = max(1, GPU_TILE_ELEMENTS // per_query)
    parts = []
    for start in range(0, q_BTHc.shape[1], step):
        tile = slice(start, start + step)
        limits = limits_BT[:, tile].contiguous()
        scores = score(q_BTHc[:, tile], weights_BTH[:, tile], keys, limits)
        picks, broken = choose(scores, limits, topk)
        if broken.any():
            raise nan_score()
        parts.append(picks)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _select_native(
    library: ctypes.CDLL,
    q_BTHc: Tensor,
    weights_BTH: Tensor,
    keys: Entries,
    limits_BT: Tensor,
    topk: int,
) -> Tensor:
    batch, tokens, heads, width = q_BTHc.shape
    q, weights, limits = q_BTHc.contiguous(), weights_BTH.contiguous(), limits_BT.contiguous()
    kept = min(topk, keys.length)
    picks = torch.empty(batch, tokens, kept, dtype=torch.int32)
    args = SelectArgs(
        q=address(q),
        weights=address(weights),
        keys=address(keys.data),
        limits=address(limits),
        picks=address(picks),
        batch=batch,
        tokens=tokens,
        heads=heads,
        width=width,
        topk=kept,
        kind=KINDS[keys.layout.kind],
        page=keys.layout.page,
        limits_stride=tokens if len(limits) > 1 else 0,
        keys_stride=row_bytes(keys),
        threads=torch.get_num_threads(),
    )
    if not library.baleen_select(ctypes.byref(args)):
        raise nan_score()
    return picks
