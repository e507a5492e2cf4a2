"""Codes and scales as numbers, inside a kernel; see `kernels/packing.py`.

Only integer arithmetic and one multiplication, so that any GPU will do.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""The interpreter cannot multiply bf16: there the rounded numbers are multiplied as fp32, which
gives the same sums."""


@triton.jit
def multiply(a, b, sum, EXACT: tl.constexpr):
    """sum + a b, in fp32; the factors stay as they are, or are rounded to `a`'s type."""
    if EXACT:
        return tl.dot(a.to(tl.float32), b, sum, input_precision="ieee")
    narrow = b.to(a.dtype)
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), narrow.to(tl.float32), sum, input_precision="ieee")
    return tl.dot(a, narrow, sum)


@triton.jit
def e2m1(codes):
    """fp32 values of 4-bit codes: 0, .5, 1, 1.5, 2, 3, 4, 6, and their negatives."""
    size = (codes & 7).to(tl.float32)
    value = tl.where(size < 4, size * 0.5, tl.where(size < 6, size - 2, size * 2 - 8))
    return tl.where((codes & 8) != 0, -value, value)


@triton.jit
def e4m3(codes):
    """fp32 values of 8-bit codes; 127 and 255 are no numbers."""
    wide = codes.to(tl.int32)
    # the bits of a code are those of an fp32 number 2^120 too small
    size = ((wide & 0x7F) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36
    size = tl.where((wide & 0x7F) == 0x7F, float("nan"), size)
    return tl.where((wide & 0x80) != 0, -size, size)


@triton.jit
def power(scales):
    """2^(e - 127) of bytes e; byte 0 is a subnormal, 255 no number."""
    wide = scales.to(tl.int32)
    bits = tl.where(wide == 0, 1 << 22, wide << 23)
    return tl.where(wide == 255, float("nan"), bits.to(tl.float32, bitcast=True))


@triton.jit
def entries(
    data,
    halves,
    places,
    valid,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    ROPE: tl.constexpr,
    PAGE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Entries `places` [N] of a list as fp32 [N, COLUMNS]; 0 where not `valid` and behind WIDTH.

    `data` points to the list's first number, or first byte where packed; `halves` to the same byte
    as bf16. KIND as numbered in `kernels/native.py`.
    """
    column = tl.arange(0, COLUMNS)[None, :]
    wanted = valid[:, None] & (column < WIDTH)
    if KIND < 2:
        at = places.to(tl.int64)[:, None] * WIDTH + column
        return tl.load(data + at, mask=wanted, other=0.0).to(tl.float32)
    NOPE: tl.constexpr = WIDTH - ROPE
    CODES: tl.constexpr = WIDTH + ROPE if KIND == 2 else WIDTH // 2
    SCALES: tl.constexpr = (NOPE + 511) // 512 * 8 if KIND == 2 else WIDTH // 32
    page = (places // PAGE).to(tl.int64)[:, None] * (PAGE * (CODES + SCALES))
    row = (places % PAGE)[:, None]
    code = page + row * CODES
    scale = page + PAGE * CODES + row * SCALES
    if KIND == 3:
        pairs = tl.load(data + code + column // 2, mask=wanted, other=0)
        scales = tl.load(data + scale + column // 32, mask=wanted, other=127)
        return e2m1((pairs >> ((column % 2) * 4).to(tl.uint8)) & 15) * power(scales)
    coded = wanted & (column < NOPE)
    codes = tl.load(data + code + column, mask=coded, other=0)
    scales = tl.load(data + scale + column // 64, mask=coded, other=127)
    tail = (code + NOPE) // 2 + column - NOPE
    rotary = tl.load(halves + tail, mask=wanted & (column >= NOPE), other=0.0)
    return tl.where(column < NOPE, e4m3(codes) * power(scales), rotary.to(tl.float32))
