"""What is trained is what a file will hold; the masters keep what rounding drops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baleen.errors import UsageError
from baleen.model import Transformer
from baleen.model.losses import next_token_loss
from baleen.model.rounding import rounded_weights

Make = Callable[..., Transformer]


def small(make_model: Make) -> Transformer:
    return make_model(3, num_hidden_layers=3, compress_ratios=(0, 4, 16), num_hash_layers=1)


def ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("format", ["fp4", "fp8", "bf16"])
@torch.no_grad()
def test_a_pass_computes_what_the_saved_folder_will(
    make_model: Make, tmp_path: Path, format: str
) -> None:
    model = small(make_model)
    exact = model(ids())
    model.save_pretrained(tmp_path, format=format)
    loaded = Transformer.from_pretrained(tmp_path, dtype=torch.float32)
    with rounded_weights(model, format):
        rounded = model(ids())
    assert torch.equal(rounded, loaded(ids()))
    assert not torch.equal(rounded, exact)
    assert torch.equal(model(ids()), exact)  # the masters are back


def test_gradients_go_straight_through_to_the_masters(make_model: Make, tmp_path: Path) -> None:
    model = small(make_model)
    model.save_pretrained(tmp_path, format="fp4")
    loaded = Transformer.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = ids()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with rounded_weights(model, "fp4"):
        next_token_loss(model, model.hidden(tokens), tokens.roll(-1, 1)).backward()
    next_token_loss(loaded, loaded.hidden(tokens), tokens.roll(-1, 1)).backward()
    theirs = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, theirs[name].grad), name


def test_steps_too_small_for_the_format_add_up_in_the_masters(make_model: Make) -> None:
    model = small(make_model)
    experts = model.layers[1].ffn.experts
    with rounded_weights(model), torch.no_grad():
        start = experts.w1.clone()
    moved = []
    for _ in range(40):
        with rounded_weights(model), torch.no_grad():
            moved.append(not torch.equal(experts.w1, start))
        experts.w1.data += 0.002 * experts.w1.data.abs().max()
    assert not moved[0]
    assert moved[-1]


def test_masters_come_back_when_a_pass_fails(make_model: Make) -> None:
    model = small(make_model)
    before = model.head.weight.detach().clone()
    with pytest.raises(RuntimeError, match="broken"), rounded_weights(model):
        raise RuntimeError("broken")
    assert torch.equal(model.head.weight, before)
    with pytest.raises(UsageError, match="fp3"), rounded_weights(model, "fp3"):
        pass
