"""Logits against an independent fp64 model, one query at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baleen.model import Transformer

sys.path.insert(0, str(Path(__file__).parent / "support"))

from naive import NaiveModel

Make = Callable[..., Transformer]


@pytest.mark.parametrize(
    ("ratios", "length"), [((0, 4, 16), 70), ((4, 4, 4), 37), ((16, 0, 4), 33), ((4, 16, 16), 3)]
)
@torch.no_grad()
def test_logits_equal_the_formulas_in_fp64(
    make_model: Make, ratios: tuple[int, ...], length: int
) -> None:
    model = make_model(length, num_hidden_layers=3, compress_ratios=ratios, num_hash_layers=1)
    ids = torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length))
    exact = NaiveModel(model).logits(ids.tolist())
    assert (model(ids.unsqueeze(0))[0] - exact).abs().max() <= 1e-5 * exact.abs().max()
