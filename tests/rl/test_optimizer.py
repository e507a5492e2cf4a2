"""Muon's update, and which parameter goes where."""

from __future__ import annotations

import pytest
import torch

from baleen.model import ModelConfig, Transformer
from baleen.rl.optimizer import Muon, is_matrix, orthogonalize
from baleen.rl.recipe import NANO_CONFIG


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.8
    assert values.max() < 1.2


def test_update_has_rms_of_018() -> None:
    weight = torch.nn.Parameter(torch.zeros(64, 128))
    weight.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.18, rel=0.05)


def test_parameters_are_split_as_in_the_report() -> None:
    with torch.device("meta"):
        model = Transformer(ModelConfig.from_hf(NANO_CONFIG.to_hf()))
    named = dict(model.named_parameters())
    muon = {name for name, parameter in named.items() if is_matrix(name, parameter)}
    assert "layers.1.attn.wq_a.weight" in muon
    assert "layers.1.ffn.experts.w1" in muon
    assert "layers.0.hc_attn.fn" in muon
    for adamw in (
        "embed.weight",
        "head.weight",
        "norm.weight",
        "layers.0.hc_attn.base",
        "layers.1.attn.compressor.ape",
        "layers.1.attn.attn_sink",
    ):
        assert adamw not in muon
        assert adamw in named
