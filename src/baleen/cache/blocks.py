"""What a compressor keeps: finished blocks, and what the next block is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baleen.cache.entries import EntryList
from baleen.cache.slots import RunningSoftmax, TokenRing
from baleen.kernels.entries import Layout


@dataclass
class OverlapState:
    """Blocks that share tokens with their neighbour (CSA): two blocks' projections are kept.

    `pending` is [B, 2m, 2, 2c]: of the last 2m tokens content and gate, each with its two halves.
    """

    pending: TokenRing
    entries: EntryList

    @property
    def ratio(self) -> int:
        """Tokens per block."""
        return self.pending.data.shape[1] // 2

    @classmethod
    def empty(cls, batch_size: int, ratio: int, layout: Layout, most: int | None) -> OverlapState:
        data = torch.zeros(batch_size, 2 * ratio, 2, 2 * layout.width)
        data[:, :, 1] = -torch.inf  # tokens before the first take no weight
        return cls(TokenRing(data), EntryList(batch_size, layout, most))

    def select(self, rows: Tensor) -> OverlapState:
        return OverlapState(self.pending.select(rows), self.entries.select(rows))


@dataclass
class DisjointState:
    """Blocks that share nothing (HCA): a running softmax stands for all tokens of the next one."""

    pending: RunningSoftmax
    entries: EntryList
    ratio: int
    """Tokens per block."""

    @classmethod
    def empty(cls, batch_size: int, ratio: int, layout: Layout, most: int | None) -> DisjointState:
        entries = EntryList(batch_size, layout, most)
        return cls(RunningSoftmax.empty(batch_size, layout.width), entries, ratio)

    def select(self, rows: Tensor) -> DisjointState:
        return DisjointState(self.pending.select(rows), self.entries.select(rows), self.ratio)
