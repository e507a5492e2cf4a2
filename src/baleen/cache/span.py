"""Which positions one call brings, for each row of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Span:
    """Row b of a [B, T] call holds positions starts[b] .. starts[b] + counts[b] - 1, then pads."""

    starts_B: Tensor
    counts_B: Tensor
    width: int
    """T, the padded number of tokens."""
    start: int | None
    """The common start when every row starts there and is full; the fast, slice-only case."""
    derived: dict[object, Tensor] = field(default_factory=dict)
    """What layers have computed from the positions alone, such as rotary phases; kept for the next
    layer."""

    @classmethod
    def of(cls, lengths_B: Tensor, width: int, counts_B: Tensor | None) -> Span:
        """The span of `width` tokens (of which `counts_B` are real) after `lengths_B` held ones."""
        uniform = len(lengths_B) == 1 or bool((lengths_B == lengths_B[0]).all())
        if counts_B is None:
            counts_B = torch.full_like(lengths_B, width)
        elif bool((counts_B != width).any()):
            uniform = False
        return cls(lengths_B, counts_B, width, int(lengths_B[0]) if uniform else None)

    @property
    def common_starts(self) -> Tensor:
        """The starts, [1] when all rows agree, so that what derives from them broadcasts."""
        return self.starts_B[:1] if self.start is not None else self.starts_B

    @property
    def positions_BT(self) -> Tensor:
        """Absolute positions, [1, T] when all rows agree."""
        return self.common_starts.unsqueeze(1) + torch.arange(self.width)
