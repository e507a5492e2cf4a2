"""Reading a ring of tokens, [B, W, ...], in which position p lies in slot p mod W."""

from __future__ import annotations

import torch
from torch import Tensor


def latest(ring: Tensor, starts_B: Tensor, count: int) -> Tensor:
    """The `count` < W tokens in front of positions `starts`, oldest first, [B, count, ...].

    `starts` is [B], or [1] for all rows alike. Positions below 0 give what the ring began with.
    """
    slots = ring.shape[1]
    index_BS = (starts_B.unsqueeze(1) + torch.arange(-count, 0, device=starts_B.device)) % slots
    if len(index_BS) == 1:
        return ring[:, index_BS[0]]
    return ring[torch.arange(len(ring), device=ring.device).unsqueeze(1), index_BS]
