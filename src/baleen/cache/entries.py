"""Compressed blocks of one layer: append-only, one list per row.

Without gradients the list lives in a buffer that doubles, and appending writes in place; capacity
that was never written takes no memory but in small lists. With gradients it is rebuilt by
concatenation, so that autograd sees every block; both read the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_CAPACITY = 64


class EntryList:
    """Rows of blocks [B, capacity, width], the first counts[b] of which are valid in row b."""

    def __init__(self, batch_size: int, width: int, dtype: torch.dtype) -> None:
        self.data = torch.zeros(batch_size, 0, width, dtype=dtype)
        self.counts_B = torch.zeros(batch_size, dtype=torch.int64)
        self.longest = 0
        """max(counts), kept as a number so that reading it costs no tensor operation."""

    @property
    def values_BMw(self) -> Tensor:
        """All blocks up to the longest row's; what lies beyond a row's count must be masked."""
        return self.data[:, : self.longest]

    def append(self, new_BMw: Tensor) -> None:
        """Adds the same number of blocks to every row; every row must hold equally many."""
        end = self.longest + new_BMw.shape[1]
        new = new_BMw.to(self.data.dtype)
        if torch.is_grad_enabled():
            self.data = torch.cat([self.values_BMw, new], dim=1)
        else:
            self.reserve(end)
            self.data[:, self.longest : end] = new
        self.counts_B = torch.full_like(self.counts_B, end)
        self.longest = end

    def append_ragged(self, new_BMw: Tensor, done_B: Tensor) -> None:
        """Adds the first done[b] of the new blocks to row b; not for training."""
        valid_BM = torch.arange(new_BMw.shape[1]) < done_B.unsqueeze(1)
        rows, picks = torch.where(valid_BM)
        counts = self.counts_B + done_B
        end = int(counts.max())
        self.reserve(end)
        self.data[:, self.longest : end] = 0  # what a shorter row lacks must be a number
        self.data[rows, self.counts_B[rows] + picks] = new_BMw[rows, picks].to(self.data.dtype)
        self.counts_B = counts
        self.longest = end

    def wrote(self, count: int) -> None:
        """Counts blocks that another hand has written behind the last of every row."""
        self.counts_B = self.counts_B + count
        self.longest += count

    def truncate(self, counts_B: Tensor) -> None:
        """Forgets all but the first counts[b] blocks of row b; the buffer stays."""
        self.counts_B = counts_B
        self.longest = int(counts_B.max())

    def select(self, rows: Tensor) -> EntryList:
        """A copy holding the given rows, in that order; a row may be taken many times."""
        taken = EntryList(len(rows), self.data.shape[2], self.data.dtype)
        taken.data = self.values_BMw[rows]
        taken.truncate(self.counts_B[rows])
        return taken

    def reserve(self, capacity: int) -> None:
        """Makes room for so many blocks in each row."""
        held = self.data.shape[1]
        if capacity > held:
            grown = max(capacity, 2 * held, FIRST_CAPACITY)
            shape = (self.data.shape[0], grown, self.data.shape[2])
            data = torch.empty(shape, dtype=self.data.dtype)
            data[:, : self.longest] = self.values_BMw
            self.data = data
