"""The precision that sums are taken in."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """fp32, or fp64 where the caller already computes in it (to check gradients)."""
    return x if x.dtype == torch.float64 else x.float()
