"""Training behind a shared prefix equals training on whole sequences; the indexer learns apart."""

from __future__ import annotations

from collections.abc import Callable

import torch

from baleen.model import Trace, Transformer
from baleen.rl.corpus import IGNORED
from baleen.rl.objective import (
    balance_experts,
    forward_behind_prefix,
    indexer_loss,
    sampled_logprobs,
    set_selection,
)

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


def test_the_lesson_moves_the_indexer_and_nothing_else(make_model: Make) -> None:
    model = small(make_model)
    trace = Trace(teaches_indexer=True)
    model.hidden(torch.arange(120).unsqueeze(0), trace=trace)
    indexer_loss([trace]).backward()
    moved = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert moved
    assert all(".indexer." in name for name in moved)
    wanted = {name for name, _ in model.named_parameters() if ".indexer." in name}
    assert moved == wanted


def test_the_lesson_is_zero_for_an_indexer_that_agrees(make_model: Make) -> None:
    trace = Trace(teaches_indexer=True)
    attention = torch.tensor([[[[0.1, 0.3, 0.2]], [[0.0, 0.0, 0.0]]]])  # B T H M
    scores = torch.tensor([[[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]]).log()
    trace.scored(0, scores.nan_to_num(neginf=0.0), torch.tensor([[3, 0]]), None)
    trace.attended(0, attention)
    assert trace.indexer_losses[0].abs().max() < 1e-6


def test_balance_pushes_towards_even_load(make_model: Make) -> None:
    model = small(make_model)
    bias = model.layers[2].ffn.gate.bias
    before = bias.clone()
    trace = Trace()
    with torch.no_grad():
        model.hidden(torch.arange(200).unsqueeze(0), trace=trace)
    load = torch.bincount(trace.routings[2].experts_LK.flatten(), minlength=len(bias)).float()
    balance_experts(model, [trace])
    assert torch.equal(torch.sign(bias - before), torch.sign(load.mean() - load))


def test_selection_can_be_widened_and_restored(make_model: Make) -> None:
    model = make_model(0)
    set_selection(model, sparse=False)
    assert model.layers[2].attn.indexer.topk > 1000
    set_selection(model, sparse=True)
    assert model.layers[2].attn.indexer.topk == model.config.index_topk
