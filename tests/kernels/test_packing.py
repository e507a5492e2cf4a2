"""Packed entries: all codes, the stated sizes, and bytes alike in the compiled and plain forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.errors import ConfigError
from baleen.kernels import Backend, Entries, Kind, Layout, using
from baleen.kernels.packing import (
    E2M1,
    decode_fp4,
    decode_fp8,
    encode_fp4,
    encode_fp8,
    hadamard,
    power_at_least,
)

FP8 = Layout(Kind.FP8, 512, 64, 64)
FP4 = Layout(Kind.FP4, 128, 0, 64)


def test_entries_have_the_released_sizes() -> None:
    assert FP8.entry_bytes == 584
    assert FP4.entry_bytes == 68
    assert FP8.empty(1, 256).nbytes == 256 * 584
    assert FP4.empty(1, 256).nbytes == 256 * 68


def test_a_page_is_planar() -> None:
    values = torch.randn(64, 512)
    data = FP8.empty(1, 64)
    FP8.put(data, torch.zeros(64, dtype=torch.int64), torch.arange(64), values)
    codes, scales = encode_fp8(values, 64, 8)
    assert torch.equal(data[0, 0, : 64 * 576], codes.flatten())
    assert torch.equal(data[0, 0, 64 * 576 :], scales.flatten())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), spread=st.sampled_from([0.0, 1e-6, 1.0, 30.0]))
@pytest.mark.parametrize("layout", [FP8, FP4, Layout(Kind.FP8, 64, 16, 8)])
def test_compiled_bytes_equal_plain_ones(layout: Layout, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(9, layout.width, generator=generator) * spread
    values *= torch.exp2(torch.randint(-20, 8, (9, 1), generator=generator))
    if layout.kind is Kind.FP4:  # whole numbers, so that the rotation sums exactly in any order
        values = torch.randint(-3, 4, values.shape, generator=generator).float()
    rows, places = torch.tensor([0, 1, 1] * 3), torch.arange(9) * 7
    written = []
    for backend in (Backend.TORCH, Backend.NATIVE):
        with using(backend):
            data = layout.empty(2, 64).zero_()
            layout.put(data, rows, places, values)
            written.append(data)
    if layout.kind is Kind.FP4:
        # a sum over sqrt(width) rounds either way at the middle between two codes
        assert (written[0] != written[1]).float().mean() < 0.01
    else:
        assert torch.equal(*written)


def test_fp8_codes_survive_a_round_trip() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F]
    numbers = codes.view(torch.float8_e4m3fn).float()
    x = torch.cat([numbers, numbers.new_full((66,), 448.0)]).view(5, 64)
    stored, scales = encode_fp8(x, 0, 8)
    assert (scales[:, 0] >= 113).all()
    assert (decode_fp8(stored, scales, 0) - x).abs().max() <= 2.0**-9
    assert torch.equal(decode_fp8(*encode_fp8(decode_fp8(stored, scales, 0), 0, 8), 0), x.float())


def test_fp4_codes_survive_a_round_trip_and_ties_go_to_even_codes() -> None:
    numbers = torch.tensor([*E2M1, *(-x for x in E2M1)] * 2)
    assert torch.equal(decode_fp4(*encode_fp4(numbers)), numbers)
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 4)
    expected = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0] * 4)
    assert torch.equal(decode_fp4(*encode_fp4(middles)), expected)


@given(exponent=st.integers(-126, 126), excess=st.sampled_from([0.0, 1e-6]))
def test_a_scale_is_the_least_power_that_suffices(exponent: int, excess: float) -> None:
    x = torch.tensor(2.0**exponent * (1 + excess))
    wanted = math.ceil(math.log2(float(x))) if excess else exponent
    assert int(power_at_least(x)) == wanted + 127


def test_a_number_that_is_none_stays_none() -> None:
    for layout in (FP8, FP4):
        for backend in Backend:
            values = torch.randn(1, layout.width)
            values[0, 3] = torch.nan
            data = layout.empty(1, 64)
            with using(backend):
                layout.put(data, torch.tensor([0]), torch.tensor([0]), values)
            assert not Entries(data, 1, layout).values().isfinite().all()


def test_the_rotation_is_its_own_inverse_and_keeps_products() -> None:
    x, y = torch.randn(7, 128), torch.randn(7, 128)
    assert (hadamard(hadamard(x)) - x).abs().max() < 1e-5
    assert ((hadamard(x) * hadamard(y)).sum(-1) - (x * y).sum(-1)).abs().max() < 1e-4


def test_widths_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(ConfigError, match="power of two"):
        Layout(Kind.FP4, 48)
    with pytest.raises(ConfigError, match="multiple of 8"):
        Layout(Kind.FP8, 36, 8)
