"""Compressed blocks of one layer: append-only, one list per row.

Without gradients the list lives in a buffer that doubles, or that was reserved for a known length,
and appending writes in place; capacity that was never written takes no memory but in small lists.
With gradients it is rebuilt by concatenation, so that autograd sees every block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baleen.kernels.entries import Entries, Layout

FIRST_CAPACITY = 64


class EntryList:
    """Rows of blocks, the first counts[b] of which are valid in row b."""

    def __init__(self, batch_size: int, layout: Layout, most: int | None = None) -> None:
        self.layout, self.most = layout, most
        """`most` blocks are ever needed; None: unknown."""
        self.data = layout.empty(batch_size, most or 0)
        self.counts_B = torch.zeros(batch_size, dtype=torch.int64)
        self.longest = 0
        """max(counts), kept as a number so that reading it costs no tensor operation."""

    @property
    def view(self) -> Entries:
        """All blocks up to the longest row's; what lies beyond a row's count must be masked."""
        return Entries(self.data, self.longest, self.layout)

    def append(self, new_BMw: Tensor) -> None:
        """Adds the same number of blocks to every row; every row must hold equally many."""
        batch, added = new_BMw.shape[:2]
        end = self.longest + added
        if torch.is_grad_enabled() and self.layout.is_plain:
            held = self.data[:, : self.longest]
            self.data = torch.cat([held, new_BMw.to(self._dtype(new_BMw))], dim=1)
        else:
            self.reserve(end)
            rows = torch.arange(batch).repeat_interleave(added)
            places = torch.arange(self.longest, end).repeat(batch)
            self.layout.put(self.data, rows, places, new_BMw.flatten(0, 1))
        self.counts_B = torch.full_like(self.counts_B, end)
        self.longest = end

    def append_ragged(self, new_BMw: Tensor, done_B: Tensor) -> None:
        """Adds the first done[b] of the new blocks to row b; not for training."""
        valid_BM = torch.arange(new_BMw.shape[1]) < done_B.unsqueeze(1)
        rows, picks = torch.where(valid_BM)
        counts = self.counts_B + done_B
        end = int(counts.max())
        self.reserve(end)
        self._clear(self.longest, end)
        self.layout.put(self.data, rows, self.counts_B[rows] + picks, new_BMw[rows, picks])
        self.counts_B = counts
        self.longest = end

    def wrote(self, count: int) -> None:
        """Counts blocks that another hand has written behind the last of every row."""
        if count:  # most tokens complete no block
            self.counts_B = self.counts_B + count
            self.longest += count

    def truncate(self, counts_B: Tensor) -> None:
        """Forgets all but the first counts[b] blocks of row b; the buffer stays."""
        self.counts_B = counts_B
        self.longest = int(counts_B.max())

    def select(self, rows: Tensor) -> EntryList:
        """A copy holding the given rows, in that order; a row may be taken many times."""
        taken = EntryList(0, self.layout)
        taken.most = self.most
        taken.data = self.used[rows]
        taken.truncate(self.counts_B[rows])
        return taken

    @property
    def used(self) -> Tensor:
        """The part of the buffer that holds blocks."""
        if self.layout.is_plain:
            return self.data[:, : self.longest]
        return self.data[:, : -(-self.longest // self.layout.page)]

    def reserve(self, capacity: int) -> None:
        """Makes room for so many blocks in each row."""
        held = self.layout.capacity(self.data)
        if capacity > held:
            grown = max(capacity, self.most or 0, 2 * held, FIRST_CAPACITY)
            data = self.layout.empty(self.data.shape[0], grown)
            used = self.used
            data[:, : used.shape[1]] = used
            self.data = data

    def _dtype(self, new: Tensor) -> torch.dtype:
        """fp64 stays, to check gradients."""
        return new.dtype if new.dtype == torch.float64 else self.layout.dtype

    def _clear(self, begin: int, end: int) -> None:
        """What a shorter row lacks must be numbers."""
        if self.layout.is_plain:
            self.data[:, begin:end] = 0
        else:
            page = self.layout.page
            self.data[:, -(-begin // page) : -(-end // page)] = 0
