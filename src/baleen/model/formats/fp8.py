"""FP8 E4M3 with one scale per 128 x 128 tile: how released files store dense matrices.

Letters: O outputs, I inputs; codes float8_e4m3fn [O, I], scales [ceil(O/128), ceil(I/128)], either
UE8M0 (instruct files) or fp32 (base files). The scales' own dtype tells which, never a config.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baleen.kernels.packing import E4M3_MAX as MAX
from baleen.kernels.weights import TILE, spread
from baleen.kernels.weights import decode_fp8 as decode
from baleen.model.formats import fp4, ue8m0

__all__ = ["MAX", "TILE", "decode", "encode", "from_fp4", "scale_shape", "tile_scales"]

SMALLEST_AMAX = MAX * 2.0**-126


def scale_shape(shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
    return -(-shape[0] // TILE), -(-shape[1] // TILE)


def tile_amax(values_OI: Tensor) -> Tensor:
    """The largest magnitude of each tile, fp32; the edge's tiles may be smaller."""
    rows, columns = scale_shape(values_OI.shape)
    bottom, right = rows * TILE - values_OI.shape[0], columns * TILE - values_OI.shape[1]
    padded = torch.nn.functional.pad(values_OI.float().abs(), (0, right, 0, bottom))
    return padded.view(rows, TILE, columns, TILE).amax((1, 3))


def tile_scales(values_OI: Tensor) -> Tensor:
    """2^ceil(log2(amax / 448)) of each tile, UE8M0."""
    return ue8m0.at_least(tile_amax(values_OI).clamp(min=SMALLEST_AMAX) / MAX)


def encode(values_OI: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix, to nearest, saturating at 448 scales.

    `scales` None takes each tile's own, see `tile_scales`.
    """
    if scales is None:
        scales = tile_scales(values_OI)
    units = values_OI.float() / spread(scales, values_OI.shape)
    return units.clamp(-MAX, MAX).to(torch.float8_e4m3fn), scales


def from_fp4(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor] | None:
    """The same matrix in FP8, without loss; None if a tile's scales lie too far apart.

    With S = largest scale of a tile / 2^6 the codes times scale/S are at most 6 * 64 = 384 and,
    down to a scale of 2^-14 times the largest, multiples of E4M3's smallest step.
    Source: DeepSeek-V4 report, section 5.2.1.
    """
    exponents = scales.view(torch.uint8).to(torch.int16)
    per_block = TILE // fp4.BLOCK
    rows, columns = -(-exponents.shape[0] // TILE), -(-exponents.shape[1] // per_block)
    grid = (rows * TILE, columns * per_block)
    missing = (0, grid[1] - exponents.shape[1], 0, grid[0] - exponents.shape[0])
    tiles = torch.nn.functional.pad(exponents, missing, value=-1)
    tiles = tiles.view(rows, TILE, columns, per_block)
    top = tiles.amax((1, 3))
    bottom = tiles.masked_fill(tiles < 0, ue8m0.NAN).amin((1, 3))
    if bool((top - bottom > 14).any()) or bool((top < 6).any()):
        return None
    tile = ue8m0.of_exponents(top - 6 - ue8m0.BIAS)
    values = fp4.decode(codes, scales)
    return encode(values, tile)
