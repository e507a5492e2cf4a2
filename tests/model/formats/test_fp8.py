"""FP8 E4M3 and UE8M0: every byte, tiles at the edge, and the way from FP4 without loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.model.formats import fp4, fp8, ue8m0

BYTES = torch.arange(256, dtype=torch.uint8)


def e4m3(byte: int) -> float:
    """The definition: sign, 4 bits of exponent with bias 7, 3 bits of fraction, no infinity."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, fraction = byte >> 3 & 15, byte & 7
    if exponent == 15 and fraction == 7:
        return math.nan
    if exponent == 0:
        return sign * fraction / 8 * 2.0**-6
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)


def one_tile(exponent: int) -> torch.Tensor:
    return ue8m0.of_exponents(torch.tensor([[exponent]]))


def test_all_e4m3_bytes_decode() -> None:
    codes = BYTES.view(torch.float8_e4m3fn)[None]
    decoded = fp8.decode(codes, ue8m0.of_exponents(torch.tensor([[0, 0]])))[0]
    expected = torch.tensor([e4m3(byte) for byte in range(256)])
    torch.testing.assert_close(decoded, expected, rtol=0, atol=0, equal_nan=True)


def test_all_ue8m0_bytes_decode() -> None:
    decoded = ue8m0.decode(BYTES.view(torch.float8_e8m0fnu)).tolist()
    assert decoded[:255] == [2.0 ** (byte - 127) for byte in range(255)]
    assert math.isnan(decoded[255])


@given(st.floats(2.0**-120, 2.0**120, width=32))
def test_a_scale_is_the_smallest_power_of_two_that_is_large_enough(value: float) -> None:
    scale = float(ue8m0.decode(ue8m0.at_least(torch.tensor([value])))[0])
    assert scale / 2 < value <= scale


@pytest.mark.parametrize("exponent", range(-126, 128))
def test_a_power_of_two_is_its_own_scale(exponent: int) -> None:
    value = torch.tensor([2.0**exponent])
    assert torch.equal(ue8m0.decode(ue8m0.at_least(value)), value)


@pytest.mark.parametrize("scale_dtype", [torch.float8_e8m0fnu, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (130, 257), (127, 400)])
def test_codes_survive_decoding_and_encoding_with_their_scales(
    shape: tuple[int, int], scale_dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(shape[1])
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    codes[(codes & 127) == 127] = 0  # NaN
    grid = fp8.scale_shape(shape)
    if scale_dtype is torch.float32:
        scales = torch.rand(grid, generator=generator) + 0.01
    else:
        scales = ue8m0.of_exponents(torch.randint(-60, 60, grid, generator=generator))
    stored = codes.view(torch.float8_e4m3fn)
    again, _ = fp8.encode(fp8.decode(stored, scales), scales)
    assert torch.equal(again.view(torch.uint8), codes)


@settings(max_examples=30)
@given(st.integers(0, 1 << 30), st.integers(-90, 90), st.integers(1, 300))
def test_encoding_with_own_scales_is_idempotent(seed: int, exponent: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, width, generator=generator) * 2.0**exponent
    once = fp8.decode(*fp8.encode(values))
    assert torch.equal(fp8.decode(*fp8.encode(once)), once)
    assert ((once - values).abs() <= values.abs() / 16 + 2.0 ** (exponent - 14)).all()


def test_each_tile_has_its_own_scale() -> None:
    values = torch.ones(256, 256)
    values[128:, :128] = 2.0**20
    decoded = fp8.decode(*fp8.encode(values))
    assert torch.equal(decoded, values)
    assert fp8.tile_scales(values).float().tolist() == [[2.0**-8, 2.0**-8], [2.0**12, 2.0**-8]]


def fp4_matrix(seed: int, rows: int, columns: int, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
    exponents = torch.randint(0, reach + 1, (rows, columns // 32), generator=generator)
    exponents[0, 0], exponents[-1, 0] = 0, reach
    return codes.view(torch.int8), ue8m0.of_exponents(exponents)


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (96, 32), (130, 160)])
def test_fp4_becomes_fp8_without_loss_up_to_a_ratio_of_2_to_14(shape: tuple[int, int]) -> None:
    codes, scales = fp4_matrix(1, *shape, reach=14)
    found = fp8.from_fp4(codes, scales)
    assert found is not None
    assert torch.equal(fp8.decode(*found), fp4.decode(codes, scales))


def test_fp4_with_scales_further_apart_is_refused() -> None:
    assert fp8.from_fp4(*fp4_matrix(1, 128, 128, reach=15)) is None
