"""Simulated quantisation: the rounding itself, where it happens, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.errors import ConfigError
from baleen.model import Transformer
from baleen.model.formats.simulation import (
    hadamard,
    round_fp4,
    round_fp8,
    round_index,
    round_latent,
)

Make = Callable[..., Transformer]
E4M3 = sorted(
    {
        (1 + f / 8) * 2.0 ** (e - 7) if e else f / 8 * 2.0**-6
        for e in range(16)
        for f in range(8)
        if (e, f) != (15, 7)
    }
)
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def reference(row: list[float], block: int, grid: list[float], smallest: float) -> list[float]:
    """One number at a time: a power-of-two scale per block, then the nearest of the grid."""
    out = []
    for start in range(0, len(row), block):
        part = row[start : start + block]
        amax = max(max(abs(x) for x in part), smallest)
        scale = 2.0 ** math.ceil(math.log2(amax / grid[-1]))
        for x in part:
            near = sorted(range(len(grid)), key=lambda i: (abs(grid[i] - abs(x) / scale), i % 2))
            out.append(math.copysign(grid[near[0]] * scale, x))
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(-12, 6), st.sampled_from([64, 100, 128, 200]))
def test_rounding_is_that_of_the_slow_reference(seed: int, exponent: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, width, generator=generator) * 2.0**exponent
    assert round_fp8(x)[0].tolist() == reference(x[0].tolist(), 128, E4M3, 1e-4)
    assert round_fp4(x)[0].tolist() == reference(x[0].tolist(), 32, E2M1, 6 * 2.0**-126)


def test_almost_nothing_is_rounded_with_the_kernels_smallest_scale() -> None:
    x = torch.full((1, 128), 3e-7)
    assert round_fp8(x)[0, 0] == reference([3e-7], 128, E4M3, 1e-4)[0]


@pytest.mark.parametrize("width", [1, 16, 128])
def test_hadamard_is_the_matrix_of_signs(width: int) -> None:
    matrix = hadamard(width)
    for i in range(0, width, 3):
        for j in range(0, width, 5):
            assert matrix[i, j] == pytest.approx((-1) ** (i & j).bit_count() / width**0.5)
    torch.testing.assert_close(matrix @ matrix, torch.eye(width))


def test_hadamard_on_both_sides_leaves_dot_products_alone() -> None:
    q, k = torch.randn(2, 7, 128)
    rotated = (q @ hadamard(128)) @ (k @ hadamard(128)).T
    torch.testing.assert_close(rotated, q @ k.T, rtol=0, atol=1e-4)


def test_the_rotary_part_of_a_latent_is_left_alone() -> None:
    x = torch.randn(3, 5, 32)
    rounded = round_latent(x, 8)
    assert torch.equal(rounded[..., -8:], x[..., -8:])
    assert not torch.equal(rounded[..., :-8], x[..., :-8])
    assert torch.equal(round_latent(rounded, 8), rounded)


@torch.no_grad()
def test_state_holds_only_what_the_formats_can_hold(make_model: Make) -> None:
    model = make_model().simulate_quantization()
    state = model.new_state()
    for chunk in torch.arange(70).remainder(256).unsqueeze(0).split([40, 1, 1, 28], dim=1):
        model(chunk, state=state)
    for layer in state.layers:
        window = layer.window.data
        assert torch.equal(round_latent(window, 8), window)
        if layer.compressor is not None:
            blocks = layer.compressor.entries.used
            assert blocks.numel() > 0
            assert torch.equal(round_latent(blocks, 8), blocks)
        if layer.indexer is not None:
            keys = layer.indexer.entries.used
            assert torch.equal(round_fp4(keys), keys)


@torch.no_grad()
@pytest.mark.parametrize("weights", ["decoded", "packed"])
def test_it_changes_logits_a_little_and_switching_it_off_restores_them(
    make_model: Make, tmp_path: object, weights: str
) -> None:
    make_model().save_pretrained(str(tmp_path), format="fp4")
    ids = torch.arange(60).unsqueeze(0)
    model = Transformer.from_pretrained(str(tmp_path), weights=weights)
    plain = model(ids)
    rounded = model.simulate_quantization()(ids)
    assert 0 < (rounded - plain).abs().mean() < 0.5 * plain.abs().mean()
    assert torch.equal(model.simulate_quantization(False)(ids), plain)
    same = Transformer.from_pretrained(str(tmp_path), weights=weights, quant_sim=True)
    assert torch.equal(same(ids), rounded)


@torch.no_grad()
def test_inputs_of_exactly_the_quantised_matrices_are_rounded(make_model: Make) -> None:
    model = make_model().simulate_quantization()
    seen: dict[str, bool] = {}

    def watch(name: str) -> Callable[..., None]:
        def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen[name] = torch.equal(round_fp8(args[0]), args[0])

        return look

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or name.endswith(".ffn.experts"):
            module.register_forward_pre_hook(watch(name.split(".", 2)[-1]))
    model(torch.arange(60).unsqueeze(0))
    rounded = {name for name, is_rounded in seen.items() if is_rounded}
    assert rounded == {
        "attn.wq_a", "attn.wq_b", "attn.wkv", "attn.wo_b", "attn.indexer.wq_b", "ffn.experts",
        "ffn.shared_experts.w1", "ffn.shared_experts.w2", "ffn.shared_experts.w3",
    }  # fmt: skip


def test_gradients_pass_straight_through() -> None:
    x = torch.randn(4, 128, requires_grad=True)
    weight = torch.randn(4, 128)
    for rounding in (round_fp8, round_fp4):
        (grad,) = torch.autograd.grad((rounding(x) * weight).sum(), x)
        assert torch.equal(grad, weight)
    (grad,) = torch.autograd.grad((round_index(x) * weight).sum(), x)
    torch.testing.assert_close(grad, weight @ hadamard(128))


def test_a_model_learns_through_the_simulation(make_model: Make) -> None:
    model = make_model().simulate_quantization().train()
    ids = torch.arange(40).unsqueeze(0)
    model(ids).square().mean().backward()
    moved = [p for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moved) > 100


def test_a_width_that_has_no_hadamard_matrix_is_refused(make_model: Make) -> None:
    with pytest.raises(ConfigError, match="index_head_dim = 24"):
        make_model(index_head_dim=24).simulate_quantization()
