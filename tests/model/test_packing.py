"""Packed documents are as if each were alone: logits, losses and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen.errors import UsageError
from baleen.model import Trace, Transformer
from baleen.model.losses import indexer_loss
from baleen.model.packing import LEAST_FILL, Packing, pack

Make = Callable[..., Transformer]


def whole(make_model: Make, seed: int = 0) -> Transformer:
    return make_model(
        seed, num_hidden_layers=3, compress_ratios=(0, 4, 16, 0), num_hash_layers=1,
        num_nextn_predict_layers=1,
    )  # fmt: skip


def documents(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_each_document_has_the_logits_and_the_lesson_it_has_alone(
    make_model: Make, lengths: list[int], seed: int
) -> None:
    model = whole(make_model, seed)
    texts = documents(lengths, seed)
    ids, packing = pack(texts)
    trace = Trace(teaches_indexer=True)
    together = model.logits(model.readout(model.packed_streams(ids, packing, trace)))[0]
    lessons = []
    for text, ours in zip(texts, together.split(lengths), strict=True):
        own = Trace(teaches_indexer=True)
        alone = model(torch.tensor([text]), trace=own)[0]
        assert (ours - alone).abs().max() <= 1e-5 * alone.abs().max()
        lessons += own.indexer_losses
    taught = torch.cat(lessons) if lessons else torch.zeros(0)
    expected = taught.mean().item() if len(taught) else 0.0
    assert indexer_loss([trace]).item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_change_in_one_document_changes_no_other(make_model: Make) -> None:
    model = whole(make_model)
    texts = documents([33, 40, 18])
    changed = [texts[0], [(token + 1) % 256 for token in texts[1]], texts[2]]
    before, after = (
        model.readout(model.packed_streams(*pack(parts)))[0] for parts in (texts, changed)
    )
    gap = (before - after).abs().amax(1)
    # not bit-equal: tokens are grouped by expert, and rounding depends on the group's size
    assert gap[:33].max() <= 1e-5
    assert gap[33:73].min() > 1e-3
    assert gap[73:].max() <= 1e-5


def test_groups_waste_little_and_hold_every_token_once() -> None:
    lengths = [5, 100, 90, 7, 81, 1, 6, 79]
    packing = Packing(lengths)
    found = torch.cat([group.source_DT[group.real_DT] for group in packing.groups])
    assert sorted(found.tolist()) == list(range(sum(lengths)))
    for group in packing.groups:
        rows = group.real_DT.sum(1)
        assert rows.min() >= LEAST_FILL * group.real_DT.shape[1]
    assert len(packing.groups) == len(lengths) - 3


def test_calls_that_do_not_fit_are_refused(make_model: Make) -> None:
    with pytest.raises(UsageError, match="at least one token"):
        Packing([3, 0])
    with pytest.raises(UsageError, match="packing holds 3 tokens"):
        whole(make_model).packed_streams(torch.zeros(1, 4, dtype=torch.int64), Packing([3]))
