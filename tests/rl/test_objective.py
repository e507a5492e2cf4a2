"""Training behind a shared prefix equals training on whole sequences; the indexer learns apart."""

from __future__ import annotations

from collections.abc import Callable

import torch

from baleen.model import Transformer
from baleen.model.losses import IGNORED
from baleen.rl.objective import forward_behind_prefix, sampled_logprobs, set_selection

Make = Callable[..., Transformer]


def small(make_model: Make) -> Transformer:
    return make_model(2, num_hidden_layers=3, compress_ratios=(0, 4, 16), num_hash_layers=1)


def test_gradients_behind_a_forked_prefix_equal_those_of_whole_sequences(make_model: Make) -> None:
    model = small(make_model)
    prefix = list(range(2, 35))
    rows = torch.randint(0, 256, (3, 21), generator=torch.Generator().manual_seed(0))
    targets = rows.roll(-1, 1)
    targets[:, -1] = IGNORED
    batches = [rows[:1], rows[1:]]
    hidden = forward_behind_prefix(model, prefix, batches, [None, None])
    forked = [
        sampled_logprobs(model, h, t) for h, t in zip(hidden, targets.split([1, 2]), strict=True)
    ]
    torch.cat(forked).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    whole = torch.cat([torch.tensor(prefix).expand(3, -1), rows], dim=1)
    full = model.hidden(whole)[:, len(prefix) :]
    sampled_logprobs(model, full, targets).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max().clamp(min=1e-3)
            assert (ours[name] - parameter.grad).abs().max() <= 1e-4 * scale, name


def test_selection_can_be_widened_and_restored(make_model: Make) -> None:
    model = make_model(0)
    set_selection(model, sparse=False)
    assert model.layers[2].attn.indexer.topk > 1000
    set_selection(model, sparse=True)
    assert model.layers[2].attn.indexer.topk == model.config.index_topk
