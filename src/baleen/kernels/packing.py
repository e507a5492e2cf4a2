"""Codes of 8 and 4 bits under power-of-two scales, for cached vectors; the plain-torch form."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

TILE = 64
"""Numbers of an fp8 entry under one scale."""
BLOCK = 32
"""Numbers of an fp4 key under one scale."""
E4M3_MAX = 448.0
E2M1_MAX = 6.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SMALLEST_FP8_SCALE = 1e-4
"""As FlashMLA: nearly empty tiles are not blown up."""
SMALLEST_FP4_AMAX = E2M1_MAX * 2.0**-126
NAN_SCALE = 255


def power_at_least(x: Tensor) -> Tensor:
    """Bytes e with the least 2^(e - 127) >= x, x > 0; 255 where x is no number."""
    mantissa, exponent = torch.frexp(x)
    exponent = exponent + 127 - (mantissa == 0.5).to(exponent.dtype)
    return torch.where(x.isnan(), NAN_SCALE, exponent.clamp(0, NAN_SCALE - 1)).to(torch.uint8)


def power(scales: Tensor) -> Tensor:
    """2^(e - 127) of bytes e; no number for 255."""
    return scales.view(torch.float8_e8m0fnu).float()


def encode_fp8(x: Tensor, rope: int, scale_bytes: int) -> tuple[Tensor, Tensor]:
    """Bytes of the numbers, the last `rope` of them bf16, and of the tiles' scales, zero-padded."""
    nope = x.shape[-1] - rope
    tiles = -(-nope // TILE)
    padded = torch.nn.functional.pad(x[..., :nope].float(), (0, tiles * TILE - nope))
    tiled = padded.unflatten(-1, (tiles, TILE))
    scales = power_at_least((tiled.abs().amax(-1) / E4M3_MAX).clamp(min=SMALLEST_FP8_SCALE))
    units = (tiled / power(scales).unsqueeze(-1)).flatten(-2)[..., :nope]
    codes = units.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    tail = x[..., nope:].to(torch.bfloat16).contiguous().view(torch.uint8)
    room = torch.nn.functional.pad(scales, (0, scale_bytes - tiles))
    return torch.cat([codes, tail], dim=-1), room


def decode_fp8(codes: Tensor, scales: Tensor, rope: int) -> Tensor:
    """What `encode_fp8` stored, fp32."""
    nope = codes.shape[-1] - 2 * rope
    units = codes[..., :nope].contiguous().view(torch.float8_e4m3fn).float()
    spread = power(scales[..., : -(-nope // TILE)].contiguous()).repeat_interleave(TILE, -1)
    tail = codes[..., nope:].contiguous().view(torch.bfloat16).float()
    return torch.cat([units * spread[..., :nope], tail], dim=-1)


def encode_fp4(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two codes to a byte, and the blocks' scales; nearest, ties to the even code."""
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    amax = blocks.abs().amax(-1).clamp(min=SMALLEST_FP4_AMAX)
    scales = power_at_least(amax / E2M1_MAX)
    units = (blocks / power(scales).unsqueeze(-1)).flatten(-2)
    size = units.abs()
    codes = torch.zeros_like(size, dtype=torch.uint8)
    for number, (low, high) in enumerate(itertools.pairwise(E2M1)):
        middle = (low + high) / 2
        codes += size > middle if number % 2 == 0 else size >= middle
    codes |= torch.signbit(units).to(torch.uint8) << 3
    even, odd = codes.unflatten(-1, (-1, 2)).unbind(-1)
    return even | (odd << 4), scales


def decode_fp4(codes: Tensor, scales: Tensor) -> Tensor:
    """What `encode_fp4` stored, fp32."""
    signed = torch.tensor([*E2M1, *(-value for value in E2M1)], device=codes.device)
    units = signed[torch.stack([codes & 15, codes >> 4], dim=-1).long()].flatten(-2)
    blocks = units.unflatten(-1, (-1, BLOCK)) * power(scales.contiguous()).unsqueeze(-1)
    values: Tensor = blocks.flatten(-2)
    return values


@functools.cache
def _hadamard_matrix(width: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    scaled: Tensor = matrix / width**0.5
    return scaled


def hadamard(x: Tensor) -> Tensor:
    """x times Sylvester's matrix over sqrt(width), a power of two; its own inverse.

    It spreads outliers over all numbers before they share a scale, and leaves dot products of two
    rotated vectors as they were.
    """
    return x.float() @ _hadamard_matrix(x.shape[-1]).to(x.device)
