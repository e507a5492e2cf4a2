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

from baleen.model.formats import ue8m0

BLOCK = 32
MAX = 6.0
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of codes 0..7; codes 8..15 are their negatives, 8 being -0."""
SMALLEST_AMAX = MAX * 2.0**-126
"""A block's largest value counts as at least this, so that a block of zeros has a scale too."""


@functools.cache
def _thresholds() -> Tensor:
    """Up to the n-th threshold a magnitude rounds to code n or less; ties go to even codes."""
    middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(VALUES)])
    upper_is_even = torch.arange(len(middles)) % 2 == 1
    below = torch.nextafter(middles, torch.zeros(()))
    return torch.where(upper_is_even, below, middles)


@functools.cache
def _pairs(dtype: torch.dtype) -> Tensor:
    """The two values of each byte, lying in memory as one integer of twice the width."""
    signed = [*VALUES, *(-value for value in VALUES)]
    pairs = torch.tensor([(signed[b & 15], signed[b >> 4]) for b in range(256)], dtype=dtype)
    return pairs.view(_DOUBLE[dtype]).flatten()


_DOUBLE = {torch.bfloat16: torch.int32, torch.float16: torch.int32, torch.float32: torch.int64}


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


def unpack(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of packed codes before scaling, [O, I]; exact in every dtype."""
    index = codes.view(torch.uint8).flatten().to(torch.int32)
    flat = _pairs(dtype).index_select(0, index).view(dtype)
    return flat.view(*codes.shape[:-1], codes.shape[-1] * 2)


def decode(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [O, I]; exact, since a code has two significant bits and a scale none."""
    units = unpack(codes, dtype)
    blocks = units.view(*scales.shape, BLOCK)
    return blocks.mul_(ue8m0.decode(scales).to(dtype).unsqueeze(-1)).view(units.shape)
