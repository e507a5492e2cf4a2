"""Pads anywhere but on the right: rows are moved to the left edge, and results moved back.

Positions, windows and blocks count a row's own tokens, so where pads stand may change nothing. The
layers know pads only behind a row's tokens (`cache.Span`); what a tokenizer pads on the left, as
batched generation wants it, is moved there first. transformers 5.23 cuts blocks by column instead,
and its left-padded rows differ from the same rows alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from baleen.errors import UsageError


class Padding(NamedTuple):
    """Where the tokens of each row of a call stand."""

    starts_B: Tensor
    """The column of each row's first token."""
    counts_B: Tensor
    """How many tokens each row has; they stand side by side."""
    width: int

    @classmethod
    def of(cls, attention_mask: Tensor, ids_BT: Tensor) -> Padding:
        """The padding that a mask [B, T] describes, true or 1 at tokens.

        Raises:
            UsageError: the mask has another shape than the ids, holds other values, or has a hole.
        """
        if attention_mask.shape != ids_BT.shape:
            raise UsageError(
                f"attention_mask is {list(attention_mask.shape)}, the ids are {list(ids_BT.shape)}"
            )
        real_BT = attention_mask.bool()
        if not bool((real_BT == attention_mask).all()):
            raise UsageError("attention_mask holds values other than 0 and 1")
        counts_B = real_BT.sum(1)
        starts_B = real_BT.int().argmax(1)
        width = real_BT.shape[1]
        columns_T = torch.arange(width, device=real_BT.device)
        expected_BT = (columns_T >= starts_B[:, None]) & (
            columns_T < (starts_B + counts_B)[:, None]
        )
        holed = (expected_BT != real_BT).any(1)
        if bool(holed.any()):
            raise UsageError(
                f"attention_mask has a hole in row {int(holed.int().argmax())}: the tokens of a row"
                " must stand side by side, with pads before or behind them"
            )
        return cls(starts_B, counts_B, width)

    def to_left(self, ids_BT: Tensor) -> Tensor:
        """The ids with each row's tokens first and its pads behind them."""
        return ids_BT.gather(1, self._shifted(self.starts_B))

    def back(self, values_BTd: Tensor) -> Tensor:
        """Values of the moved columns in the columns that the caller gave; pads' mean nothing."""
        columns_BT = self._shifted(-self.starts_B)
        return values_BTd.gather(1, columns_BT.unsqueeze(2).expand_as(values_BTd))

    def _shifted(self, by_B: Tensor) -> Tensor:
        columns_T = torch.arange(self.width, device=by_B.device)
        return (columns_T + by_B[:, None]) % self.width
