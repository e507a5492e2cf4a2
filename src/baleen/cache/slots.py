"""State of a fixed size, whatever the length of the past: rings of tokens and running sums.

A mark is a reference to the tensor. The first write after a mark goes to a copy, so that rolling
back is exact and costs nothing where nothing was marked.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from baleen.cache.span import Span
from baleen.kernels.entries import Entries, Layout
from baleen.kernels.ring import latest

EMPTY = -1e30
"""Running maximum of no token at all; finite, so that differences to it are numbers."""


class Slots:
    """One tensor [B, ...], written in place unless a mark or a gradient still needs its values."""

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self._shared = False

    def mark(self) -> Tensor:
        """The values as they are now; they stay so until the last holder drops them."""
        self._shared = True
        return self.data

    def rollback(self, marked: Tensor) -> None:
        """Returns to what `mark` gave out, which stays valid for another time."""
        self.data, self._shared = marked, True

    def select(self, rows: Tensor) -> Self:
        """A copy with the given rows, in that order."""
        return type(self)(self.data[rows])

    def replace(self, data: Tensor) -> None:
        self.data, self._shared = data, False

    def writable(self) -> Tensor:
        """The tensor, safe to write into."""
        if self._shared or torch.is_grad_enabled():
            self.replace(self.data.clone())
        return self.data


class TokenRing(Slots):
    """What the last W tokens of each row left, [B, W, ...]; position p lies in slot p mod W.

    Slots of positions that never were hold what the ring began with.
    """

    def before(self, span: Span, count: int) -> Tensor:
        """The `count` < W tokens in front of a call, oldest first, [B, count, ...]."""
        return latest(self.data, span.common_starts, count)

    def write(self, new: Tensor, span: Span) -> None:
        """Takes in a call's tokens [B, T, ...]; pads are left out."""
        data = self.writable()
        rows, tokens, slots = placed(span, len(data), data.shape[1])
        data[rows, slots] = new[rows, tokens].to(data.dtype)


class LatentRing(Slots):
    """The last W latents of each row, stored as a list of W entries; a ring as above."""

    def __init__(self, data: Tensor, layout: Layout) -> None:
        super().__init__(data)
        self.layout = layout

    @classmethod
    def empty(cls, batch_size: int, layout: Layout) -> LatentRing:
        """A ring of one page's entries."""
        return cls(layout.empty(batch_size, layout.page).zero_(), layout)

    @property
    def view(self) -> Entries:
        return Entries(self.data, self.layout.page, self.layout)

    def select(self, rows: Tensor) -> LatentRing:
        return LatentRing(self.data[rows], self.layout)

    def write(self, new_BTc: Tensor, span: Span) -> None:
        """Takes in a call's latents; pads are left out."""
        data = self.writable()
        if new_BTc.dtype == torch.float64:
            data = self.data = data.double()  # gradients are being checked
        rows, tokens, slots = placed(span, len(data), self.layout.page)
        self.layout.put(data, rows, slots, new_BTc[rows, tokens])


def placed(span: Span, batch: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens of a call a ring of `size` keeps: row, token and slot of each."""
    key = ("placed", batch, size)
    if key not in span.derived:
        counts_B1 = span.counts_B.unsqueeze(1)
        token_T = torch.arange(span.width)
        kept_BT = (token_T < counts_B1) & (token_T >= counts_B1 - size)
        rows, tokens = torch.where(kept_BT)
        slots = (span.starts_B[rows] + tokens) % size
        span.derived[key] = torch.stack([rows, tokens, slots])
    rows, tokens, slots = span.derived[key]
    return rows, tokens, slots


class RunningSoftmax(Slots):
    """Per channel the maximum, the sum of exponentials and the weighted sum of the tokens of a
    block that is not complete yet, [B, 3, c]. It stands for any number of tokens.
    """

    @classmethod
    def empty(cls, batch_size: int, width: int) -> RunningSoftmax:
        data = torch.zeros(batch_size, 3, width)
        data[:, 0] = EMPTY
        return cls(data)
