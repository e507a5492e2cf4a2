"""State of a fixed size, whatever the length of the past: rings of tokens and running sums.

A mark is a reference to the tensor. The first write after a mark goes to a copy, so that rolling
back is exact and costs nothing where nothing was marked.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from baleen.cache.span import Span
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
    """The last W tokens of each row, [B, W, ...]; position p lies in slot p mod W.

    Slots of positions that never were hold what the ring began with.
    """

    def before(self, span: Span, count: int) -> Tensor:
        """The `count` < W tokens in front of a call, oldest first, [B, count, ...]."""
        return latest(self.data, span.common_starts, count)

    def write(self, new: Tensor, span: Span) -> None:
        """Takes in a call's tokens [B, T, ...]; pads are left out."""
        data, slots = self.writable(), self.data.shape[1]
        if span.start is None:
            token_T = torch.arange(span.width)
            end_B1 = span.counts_B.unsqueeze(1)
            rows, tokens = torch.where((token_T < end_B1) & (token_T >= end_B1 - slots))
            data[rows, (span.starts_B[rows] + tokens) % slots] = new[rows, tokens].to(data.dtype)
        elif span.width == 1:
            data[:, span.start % slots] = new[:, 0].to(data.dtype)
        else:
            kept = min(span.width, slots)
            end = span.start + span.width
            data[:, torch.arange(end - kept, end) % slots] = new[:, -kept:].to(data.dtype)


class RunningSoftmax(Slots):
    """Per channel the maximum, the sum of exponentials and the weighted sum of the tokens of a
    block that is not complete yet, [B, 3, c]. It stands for any number of tokens.
    """

    @classmethod
    def empty(cls, batch_size: int, width: int) -> RunningSoftmax:
        data = torch.zeros(batch_size, 3, width)
        data[:, 0] = EMPTY
        return cls(data)
