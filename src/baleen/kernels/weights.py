"""Weight matrices as model files store them: plain, or codes under scales.

- FP4: int8 codes [O, I/2], low nibble the even input, a UE8M0 scale [O, I/32] per 32 inputs.
- FP8: float8_e4m3fn codes [O, I], a scale [ceil(O/128), ceil(I/128)] per tile, UE8M0 or fp32.

Letters: O outputs, I inputs. Source: OCP MX specification 1.0; nibble order as in released files.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from baleen.kernels.packing import BLOCK, E2M1

TILE = 128
"""Rows and columns of an FP8 matrix under one scale."""


@functools.cache
def _pairs(dtype: torch.dtype) -> Tensor:
    """The two values of each byte, lying in memory as one integer of twice the width."""
    signed = [*E2M1, *(-value for value in E2M1)]
    pairs = torch.tensor([(signed[b & 15], signed[b >> 4]) for b in range(256)], dtype=dtype)
    return pairs.view(_DOUBLE[dtype]).flatten()


_DOUBLE = {torch.bfloat16: torch.int32, torch.float16: torch.int32, torch.float32: torch.int64}


def unpack_fp4(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of packed codes before scaling, [O, I]; exact in every dtype."""
    index = codes.view(torch.uint8).flatten().to(torch.int32)
    flat = _pairs(dtype).to(codes.device).index_select(0, index).view(dtype)
    return flat.view(*codes.shape[:-1], codes.shape[-1] * 2)


def decode_fp4(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [O, I]; exact, since a code has two significant bits and a scale none."""
    units = unpack_fp4(codes, dtype)
    blocks = units.view(*scales.shape, BLOCK)
    return blocks.mul_(scales.float().to(dtype).unsqueeze(-1)).view(units.shape)


def spread(scales: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Scales [o, i] of tiles repeated over them, fp32 [O, I]."""
    rows = scales.float().repeat_interleave(TILE, 0)[: shape[0]]
    return rows.repeat_interleave(TILE, 1)[:, : shape[1]]


def decode_fp8(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [O, I]: product in fp32, one cast at the end."""
    rows, columns = scales.shape
    shape = codes.shape
    if (rows * TILE, columns * TILE) != tuple(shape):
        return (codes.float() * spread(scales, shape)).to(dtype)
    tiled = codes.float().view(rows, TILE, columns, TILE)
    return tiled.mul_(scales.float().view(rows, 1, columns, 1)).view(shape).to(dtype)


def decode(data: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The values of a matrix, however it is stored."""
    if scales is None:
        return data.to(dtype)
    decode_codes = decode_fp4 if data.dtype == torch.int8 else decode_fp8
    return decode_codes(data, scales, dtype)


def num_inputs(data: Tensor) -> int:
    """I of a matrix [..., O, I]."""
    return data.shape[-1] * (2 if data.dtype == torch.int8 else 1)
