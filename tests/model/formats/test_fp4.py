"""FP4 E2M1: every code, the nibble order, rounding, and exact round trips."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.model.formats import fp4, ue8m0

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def packed(codes: list[int]) -> torch.Tensor:
    """Codes of one row, two in a byte, the first in the low nibble."""
    pairs = zip(codes[::2], codes[1::2], strict=True)
    return torch.tensor([[a | b << 4 for a, b in pairs]], dtype=torch.uint8).view(torch.int8)


def scales_of(*exponents: int) -> torch.Tensor:
    return ue8m0.of_exponents(torch.tensor([exponents]))


def nearest_even(value: float) -> float:
    """The slow reference: of the nearest magnitudes the one with the even code."""
    order = sorted(range(8), key=lambda code: (abs(E2M1[code] - abs(value)), code % 2))
    return E2M1[order[0]]


def test_all_sixteen_codes_decode() -> None:
    codes = list(range(16)) * 2
    row = fp4.decode(packed(codes), scales_of(0))[0].tolist()
    assert row[:16] == [*E2M1, *(-value for value in E2M1)]
    assert torch.signbit(torch.tensor(row[8]))


def test_the_low_nibble_is_the_even_input() -> None:
    assert fp4.unpack(packed([1, 7])).tolist() == [[0.5, 6.0]]


def test_scales_apply_to_their_32_inputs() -> None:
    row = fp4.decode(packed([2] * 96), scales_of(0, 3, -5))[0]
    assert row.unflatten(0, (3, 32))[:, 0].tolist() == [1.0, 8.0, 2.0**-5]


@given(st.floats(-6.0, 6.0, width=32))
def test_rounding_is_to_nearest_and_ties_go_to_even_codes(value: float) -> None:
    values = torch.full((1, 32), value)
    decoded = fp4.decode(*fp4.encode(values, scales_of(0)))[0, 0]
    assert abs(decoded) == nearest_even(value)
    assert torch.signbit(decoded) == torch.signbit(torch.tensor(value))


def test_every_middle_between_two_codes_goes_to_the_even_one() -> None:
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]).repeat(32)[:32]
    decoded = fp4.decode(*fp4.encode(middles[None], scales_of(0)))[0, :7].tolist()
    assert decoded == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


def test_beyond_the_largest_value_is_clamped() -> None:
    values = torch.tensor([[100.0, -7.0] * 16])
    assert fp4.decode(*fp4.encode(values, scales_of(0)))[0, :2].tolist() == [6.0, -6.0]


@given(st.lists(st.integers(0, 255), min_size=32, max_size=32), st.integers(3, 252))
def test_codes_survive_decoding_and_encoding_with_their_scales(
    data: list[int], exponent: int
) -> None:
    codes = torch.tensor([data], dtype=torch.uint8).view(torch.int8)
    scales = torch.tensor([[exponent, 255 - exponent]], dtype=torch.uint8)
    scales = scales.view(torch.float8_e8m0fnu)
    again, same = fp4.encode(fp4.decode(codes, scales), scales)
    assert torch.equal(again, codes)
    assert same is scales


@settings(max_examples=50)
@given(st.integers(0, 1 << 30), st.integers(-100, 100))
def test_encoding_with_own_scales_is_idempotent_and_never_clamps(seed: int, exponent: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 64, generator=generator) * 2.0**exponent
    once = fp4.decode(*fp4.encode(values))
    assert torch.equal(fp4.decode(*fp4.encode(once)), once)
    steps = ue8m0.decode(fp4.block_scales(values)).repeat_interleave(32, 1)
    assert ((once - values).abs() <= steps).all()


def test_a_block_of_zeros_has_a_scale() -> None:
    codes, scales = fp4.encode(torch.zeros(1, 32))
    assert scales.view(torch.uint8).tolist() == [[1]]
    assert codes.tolist() == [[0] * 16]


def test_half_precision_decodes_to_the_same_values() -> None:
    codes = torch.randint(0, 256, (8, 64), dtype=torch.uint8).view(torch.int8)
    scales = ue8m0.of_exponents(torch.randint(-20, 20, (8, 4)))
    wide = fp4.decode(codes, scales)
    assert torch.equal(fp4.decode(codes, scales, torch.bfloat16).float(), wide)
