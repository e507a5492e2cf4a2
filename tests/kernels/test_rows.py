"""Norms, rotations and gates: the compiled form equals the formula in float64."""

from __future__ import annotations

import pytest
import torch

from baleen.kernels import Backend, norm_rotate, rotate_back, swiglu, using
from baleen.kernels.rows import rotate_tail


def phases(batch: int, tokens: int, pairs: int) -> torch.Tensor:
    angle = torch.rand(batch, tokens, pairs, dtype=torch.float64) * 7
    return torch.polar(torch.ones_like(angle), angle)


@pytest.mark.parametrize("backend", [Backend.TORCH, Backend.NATIVE])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_norm_and_rotation_equal_the_formula(backend: Backend, rows: int, weighted: bool) -> None:
    x = torch.randn(3, 5, 2, 24, dtype=torch.float64)
    weight = torch.randn(24, dtype=torch.float64) if weighted else None
    turn = phases(rows, 5, 4)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = rotate_tail(normed if weight is None else normed * weight, turn.unsqueeze(2))
    with using(backend):
        actual = norm_rotate(
            x.float(), None if weight is None else weight.float(), turn.to(torch.complex64), 1e-6
        )
    assert (actual - expected).abs().max() < 1e-5


@pytest.mark.parametrize("backend", [Backend.TORCH, Backend.NATIVE])
def test_turning_back_undoes_a_rotation(backend: Backend) -> None:
    x, turn = torch.randn(2, 7, 3, 16), phases(2, 7, 3).to(torch.complex64)
    with using(backend):
        assert (rotate_back(norm_rotate(x, None, turn, None), turn) - x).abs().max() < 1e-5


@pytest.mark.parametrize("backend", [Backend.TORCH, Backend.NATIVE])
def test_the_gate_is_clamped_and_weighted(backend: Backend) -> None:
    gate = torch.tensor([[-200.0, -3.0, -0.5, 0.0, 0.5, 3.0, 30.0, 200.0]] * 2)
    up = torch.tensor([[1.0, -20.0, 2.0, 3.0, 20.0, -1.0, 5.0, -50.0]] * 2)
    weights = torch.tensor([0.5, 2.0])
    wide = gate.double().clamp(max=10)
    expected = wide / (1 + torch.exp(-wide)) * up.double().clamp(-10, 10) * weights.unsqueeze(1)
    with using(backend):
        actual = swiglu(gate, up, 10.0, weights)
    assert torch.allclose(actual.double(), expected, rtol=1e-6, atol=1e-30)
