"""The small pieces: RMSNorm and rotary positions.

Letters: B batch, T query tokens, S key positions, M compressed blocks, H heads, D head width,
R rope width, E experts, I expert width, N residual streams, d model width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baleen.kernels.precision import widen
from baleen.model.config import YarnScaling


class RMSNorm(nn.Module):
    """w * x / sqrt(mean(x^2) + eps), in fp32 including the weight product; one cast at the end."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = F.rms_norm(widen(x), x.shape[-1:], widen(self.weight), self.eps)
        return normed.to(x.dtype)


def rope_frequencies(rope_dim: int, theta: float, scaling: YarnScaling | None) -> Tensor:
    """Angular frequencies f_i = theta^(-2i/R), i = 0..R/2-1, YaRN-interpolated if scaling is given.

    fp64 [R/2]. Cosine and sine are *not* multiplied by YaRN's mscale: V4 leaves it out.
    Source: YaRN, arXiv 2309.00071, section 3.2.
    """
    exponent = torch.arange(0, rope_dim, 2, dtype=torch.float64) / rope_dim
    frequencies = theta**-exponent
    if scaling is None:
        return frequencies

    def dimension(rotations: float) -> float:
        """The pair that turns `rotations` times over the original context."""
        length = scaling.original_max_position_embeddings
        return rope_dim * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), rope_dim - 1)
    width = max(high - low, 0.001)
    ramp = ((torch.arange(rope_dim // 2, dtype=torch.float64) - low) / width).clamp(0, 1)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)


def rope_phases(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Unit phases e^(i * position * f), complex64 [*positions.shape, R/2].

    The angle is taken in fp64: at position 2^20 an fp32 product is off by a tenth of a radian.
    """
    angle = positions.to(torch.float64).unsqueeze(-1) * frequencies
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
