"""Rows times matrices in stored form, decoded on the way; see `kernels/product.py`.

A program makes a tile of one matrix's outputs for a few of the rows that belong to it. Rows in bf16
are multiplied in bf16: codes times a power of two are bf16 numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from baleen.kernels.gpu.codes import e2m1, e4m3, multiply, power

ROWS = 16
OUTPUTS = 64
INPUTS = 128
"""To a program's tile and step; an FP8 scale covers as many inputs as a step takes."""


@triton.jit
def _product(
    x_RI,
    codes,
    scales,
    tiles_L3,
    out_RO,
    outputs,
    inputs,
    code_stride,
    scale_stride,
    FP4: tl.constexpr,
    BYTES: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    tile = tiles_L3 + 3 * tl.program_id(0)
    matrix, first, count = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    row = tl.arange(0, ROWS)
    known = (row < count)[:, None]
    x = x_RI + (first + row)[:, None] * inputs
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    real = (output < outputs)[:, None]
    mine, under = codes + matrix * code_stride, scales + matrix * scale_stride
    sum = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for begin in range(0, inputs, INPUTS):
        if FP4:
            pair = begin // 2 + tl.arange(0, INPUTS // 2)[None, :]
            inside = pair < inputs // 2
            at = output.to(tl.int64)[:, None] * (inputs // 2) + pair
            both = tl.load(mine + at, mask=real & inside, other=0)
            block = output.to(tl.int64)[:, None] * (inputs // 32) + pair // 16
            share = power(tl.load(under + block, mask=real & inside, other=127))
            even = tl.load(x + 2 * pair, mask=known & inside, other=0.0)
            odd = tl.load(x + 2 * pair + 1, mask=known & inside, other=0.0)
            sum = multiply(even, tl.trans(e2m1(both & 15) * share), sum, EXACT)
            sum = multiply(odd, tl.trans(e2m1(both >> 4) * share), sum, EXACT)
        else:
            column = begin + tl.arange(0, INPUTS)[None, :]
            inside = column < inputs
            at = output.to(tl.int64)[:, None] * inputs + column
            units = e4m3(tl.load(mine + at, mask=real & inside, other=0))
            area = (output // 128) * tl.cdiv(inputs, 128) + begin // 128
            share = tl.load(under + area, mask=output < outputs, other=0)
            if BYTES:
                share = power(share)
            part = tl.load(x + column, mask=known & inside, other=0.0)
            sum = multiply(part, tl.trans(units * share[:, None]), sum, EXACT)
    at = (first + row)[:, None] * outputs + output[None, :]
    tl.store(out_RO + at, sum, mask=known & (output < outputs)[None, :])


def product(x_RI: Tensor, sizes: list[int], codes_EOx: Tensor, scales: Tensor) -> Tensor:
    """fp32 [R, O]: the first sizes[0] rows by the first matrix, and so on."""
    is_fp4 = codes_EOx.dtype == torch.int8
    inputs, outputs = x_RI.shape[1], codes_EOx.shape[1]
    tiles, first = [], 0
    for matrix, size in enumerate(sizes):
        tiles += [(matrix, first + at, min(ROWS, size - at)) for at in range(0, size, ROWS)]
        first += size
    out = torch.empty(len(x_RI), outputs, dtype=torch.float32, device=x_RI.device)
    by_byte = scales.dtype == torch.float8_e8m0fnu
    # fp32 scales are no powers of two, so products with them need more than bf16
    exact = x_RI.dtype != torch.bfloat16 or not by_byte
    _product[(len(tiles), triton.cdiv(outputs, OUTPUTS))](
        x_RI.contiguous(),
        codes_EOx.view(torch.uint8),
        scales.view(torch.uint8) if by_byte else scales,
        torch.tensor(tiles, dtype=torch.int64, device=x_RI.device),
        out,
        outputs,
        inputs,
        codes_EOx.stride(0),
        scales.stride(0),
        FP4=is_fp4,
        BYTES=by_byte,
        EXACT=exact,
        ROWS=ROWS,
        OUTPUTS=OUTPUTS,
        INPUTS=INPUTS,
    )
    return out
