"""FP4 E2M1 with one UE8M0 scale per 32 inputs: how released files store routed experts.

A byte holds two codes: low nibble the even input, high nibble the odd one. Bit 3 of a code is the
sign. Letters: O outputs, I inputs; codes int8 [O, I/2], scales float8_e8m0fnu [O, I/32].
Source: OCP MX specification 1.0; nibble order as in the released files.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from baleen.kernels.packing import BLOCK
from baleen.kernels.packing import E2M1 as VALUES
from baleen.kernels.packing import E2M1_MAX as MAX
from baleen.kernels.weights import decode_fp4 as decode
from baleen.kernels.weights import unpack_fp4 as unpack
from baleen.model.formats import ue8m0

__all__ = ["BLOCK", "MAX", "SMALLEST_AMAX", "block_scales", "decode", "encode", "unpack"]

SMALLEST_AMAX = MAX * 2.0**-126
"""A block's largest value counts as at least this, so that a block of zeros has a scale too."""


@functools.cache
def _thresholds() -> Tensor:
    """Up to the n-th threshold a magnitude rounds to code n or less; ties go to even codes."""
    middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(VALUES)])
    upper_is_even = torch.arange(len(middles)) % 2 == 1
    below = torch.nextafter(middles, torch.zeros(()))
    return torch.where(upper_is_even, below, middles)


def block_scales(values_OI: Tensor) -> Tensor:
    """2^ceil(log2(amax / 6)) of each block, the scale with which nothing is clamped."""
    amax = values_OI.float().abs().unflatten(-1, (-1, BLOCK)).amax(-1)
    return ue8m0.at_least(amax.clamp(min=SMALLEST_AMAX) / MAX)


def encode(values_OI: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix: rounded to nearest, ties to the even code, clamped to 6 scales.

    `scales` None takes each block's own, see `block_scales`.
    """
    if scales is None:
        scales = block_scales(values_OI)
    units = values_OI.float().unflatten(-1, (-1, BLOCK)) / ue8m0.decode(scales).unsqueeze(-1)
    codes = torch.bucketize(units.abs(), _thresholds(), out_int32=True).to(torch.uint8)
    codes |= torch.signbit(units).to(torch.uint8) << 3
    low, high = codes.flatten(-2).unflatten(-1, (-1, 2)).unbind(-1)
    return (low | (high << 4)).view(torch.int8), scales
