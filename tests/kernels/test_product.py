"""Products with stored matrices equal those with their decoded values in float64, in every form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baleen.kernels import Backend, grouped_product, product, using
from baleen.kernels.weights import decode

BACKENDS = list(Backend)
KINDS = ["fp4", "fp8", "fp8 fp32 scales", "bf16", "fp32"]


def matrix(
    kind: str, outputs: int, inputs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """All codes and a wide range of scales."""
    if kind in ("bf16", "fp32"):
        values = torch.randn(outputs, inputs, generator=generator)
        return values.to(torch.bfloat16 if kind == "bf16" else torch.float32), None
    is_fp4 = kind == "fp4"
    shape = (outputs, inputs // 32) if is_fp4 else (-(-outputs // 128), -(-inputs // 128))
    scales: Tensor = torch.randint(117, 132, shape, generator=generator, dtype=torch.uint8)
    scales = scales.view(torch.float8_e8m0fnu)
    if kind.endswith("fp32 scales"):
        scales = torch.rand(shape, generator=generator)
    width = inputs // 2 if is_fp4 else inputs
    codes = torch.randint(0, 256, (outputs, width), generator=generator, dtype=torch.uint8)
    if is_fp4:
        return codes.view(torch.int8), scales
    codes[(codes & 0x7F) == 0x7F] = 0  # no numbers
    return codes.view(torch.float8_e4m3fn), scales


def check(actual: Tensor, x: Tensor, data: Tensor, scales: Tensor | None, slack: float) -> None:
    values = decode(data, scales, torch.float32).double()
    expected = x.double() @ values.T
    # rounding adds up over the terms, whatever cancels
    size = x.double().abs() @ values.T.abs() + 1e-30
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() / size).max() < slack


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.sampled_from([1, 2, 3, 5, 17, 33]),
    outputs=st.integers(1, 150),
    blocks=st.integers(1, 9),
    seed=st.integers(0, 99),
    backend=st.sampled_from(BACKENDS),
)
def test_a_product_equals_that_of_the_decoded_matrix(
    kind: str, rows: int, outputs: int, blocks: int, seed: int, backend: Backend
) -> None:
    generator = torch.Generator().manual_seed(seed)
    data, scales = matrix(kind, outputs, 32 * blocks, generator)
    x = torch.randn(rows, 32 * blocks, generator=generator)
    with using(backend):
        check(product(x, data, scales), x, data, scales, 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_run_of_rows_meets_its_own_matrix(kind: str, backend: Backend) -> None:
    generator = torch.Generator().manual_seed(7)
    made = [matrix(kind, 40, 160, generator) for _ in range(5)]
    data = torch.stack([m.view(torch.uint8) for m, _ in made]).view(made[0][0].dtype)
    scales = None
    if made[0][1] is not None:
        stacked = torch.stack([s.view(torch.uint8) for _, s in made if s is not None])
        scales = stacked.view(made[0][1].dtype)
    sizes = [3, 0, 18, 1, 0]
    x = torch.randn(22, 160, generator=generator)
    with using(backend):
        out = grouped_product(x, sizes, data, scales)
    for expert, (rows, actual) in enumerate(zip(x.split(sizes), out.split(sizes), strict=True)):
        if len(rows):
            check(actual, rows, *made[expert], 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["fp4", "fp8"])
def test_rows_in_bf16_lose_nothing_but_their_own_rounding(kind: str, backend: Backend) -> None:
    generator = torch.Generator().manual_seed(1)
    data, scales = matrix(kind, 70, 256, generator)
    x = torch.randn(4, 256, generator=generator).to(torch.bfloat16)
    with using(backend):
        out = product(x, data, scales)
    assert out.dtype == torch.float32
    check(out, x, data, scales, 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("kind", ["fp4", "fp8"])
def test_what_is_no_number_stays_none(kind: str, rows: int, backend: Backend) -> None:
    generator = torch.Generator().manual_seed(2)
    data, scales = matrix(kind, 9, 64, generator)
    assert scales is not None
    if kind == "fp8":
        data.view(torch.uint8)[4, 33] = 0xFF
    else:
        scales.view(torch.uint8)[4, 1] = 0xFF
    with using(backend):
        out = product(torch.randn(rows, 64, generator=generator), data, scales)
    assert not out[:, 4].isfinite().any()
    assert out[:, :4].isfinite().all()
    assert out[:, 5:].isfinite().all()
