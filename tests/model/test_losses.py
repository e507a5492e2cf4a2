"""The losses beside the next token's: what they are, and what they move."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from baleen.model import Trace, Transformer
from baleen.model.losses import (
    IGNORED,
    balance_experts,
    expert_loads,
    indexer_loss,
    mtp_loss,
    next_token_loss,
    sequence_balance_loss,
)

sys.path.insert(0, str(Path(__file__).parent / "support"))

from naive import NaiveModel

Make = Callable[..., Transformer]


def small(make_model: Make, **fields: object) -> Transformer:
    shape = {"num_hidden_layers": 3, "compress_ratios": (0, 4, 16, 0), "num_hash_layers": 1}
    return make_model(2, **{**shape, **fields})


def random_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(length))


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
    balance_experts(model, expert_loads(model, [trace]))
    assert torch.equal(torch.sign(bias - before), torch.sign(load.mean() - load))


@torch.no_grad()
def test_the_lesson_is_the_kl_of_the_formulas(make_model: Make) -> None:
    model = small(make_model)
    ids = random_ids(1, 60)
    naive, trace = NaiveModel(model), Trace(teaches_indexer=True)
    naive.logits(ids[0].tolist())
    model(ids, trace=trace)
    assert len(trace.indexer_losses[0]) == len(naive.lessons) == 60 - 3
    exact = torch.stack(naive.lessons).mean().item()
    assert indexer_loss([trace]).item() == pytest.approx(exact, rel=1e-4)


@torch.no_grad()
def test_drafts_are_scored_on_the_token_after_next_and_stop_at_ignored_ones(
    make_model: Make,
) -> None:
    model = small(make_model, num_nextn_predict_layers=1)
    ids = random_ids(1, 41)
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    exact = NaiveModel(model).drafted_logits(inputs[0].tolist()).log_softmax(-1)
    each = -exact.gather(1, targets[0, 1:].unsqueeze(1)).squeeze(1)
    loss = mtp_loss(model, model.streams(inputs), inputs, targets)
    assert loss.item() == pytest.approx(each.mean().item(), rel=1e-5)
    targets[0, 20] = IGNORED  # neither as the token to be drafted nor as the one shown before
    kept = torch.ones(39, dtype=torch.bool)
    kept[19:21] = False
    loss = mtp_loss(model, model.streams(inputs), inputs, targets)
    assert loss.item() == pytest.approx(each[kept].mean().item(), rel=1e-5)


@torch.no_grad()
def test_the_next_tokens_loss_is_a_mean_over_what_has_a_target(make_model: Make) -> None:
    model = small(make_model)
    ids = random_ids(2, 30)
    targets = ids.roll(-1, 1)
    targets[1, 5:] = IGNORED
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert next_token_loss(model, model.hidden(ids), targets).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


@torch.no_grad()
def test_sequence_balance_is_the_formula_per_sequence(make_model: Make) -> None:
    model = small(make_model)
    rows, trace = [random_ids(1, n) for n in (33, 20)], Trace()
    padded = torch.zeros(2, 33, dtype=torch.int64)
    padded[0], padded[1, :20] = rows[0][0], rows[1][0]
    model(padded, counts_B=torch.tensor([33, 20]), trace=trace)
    sequences = torch.tensor([[0] * 33, [1] * 20 + [-1] * 13]).flatten()
    naive, each = NaiveModel(model), []
    for row in rows:
        naive.logits(row[0].tolist())
        each.append(torch.stack(naive.balance).sum())
    loss = sequence_balance_loss(model, trace, sequences)
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_even_load_has_the_least_sequence_balance_loss(make_model: Make) -> None:
    from baleen.model.moe import Routing

    model = small(make_model)
    even = torch.arange(16).remainder(8).view(8, 2)
    scores = torch.full((8, 8), 0.5)
    trace = Trace(routings={1: Routing(even, even.float(), scores)})
    one = sequence_balance_loss(model, trace, torch.zeros(8, dtype=torch.int64))
    assert one.item() == pytest.approx(1.0)
    skewed = scores.clone()
    skewed[:, :2] = 2.0
    trace = Trace(routings={1: Routing(even * 0 + torch.tensor([0, 1]), even.float(), skewed)})
    assert sequence_balance_loss(model, trace, torch.zeros(8, dtype=torch.int64)) > 2
