"""A session computes each token once, and what it computes does not depend on how it got there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen.engine import Batch, Sampling, Session
from baleen.engine.sampling import Tokens, pick
from baleen.errors import ConfigError, UsageError
from baleen.model import Transformer

Make = Callable[..., Transformer]


def small(make_model: Make) -> Transformer:
    return make_model(1, num_hidden_layers=3, compress_ratios=(0, 4, 16), num_hash_layers=1)


def drain(session: Session, prompt: list[int], sampling: Sampling) -> list[int]:
    return [token.id for token in session.generate(prompt, sampling)]


def test_the_next_turn_computes_only_what_is_new(make_model: Make) -> None:
    session = Session(small(make_model))
    prompt = list(range(2, 60))
    answer = drain(session, prompt, Sampling(max_tokens=5))
    drain(session, [*prompt, *answer, 7, 8, 9], Sampling(max_tokens=1))
    # the answer's last token was sampled, not yet computed
    assert session.prefilled_tokens == len(prompt) + 1 + 3
    assert session.reused_tokens == len(prompt) + len(answer) - 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_changed_past_gives_what_a_new_session_gives(
    make_model: Make, temperature: float
) -> None:
    model = small(make_model)
    sampling = Sampling(temperature=temperature, max_tokens=6, seed=3)
    session = Session(model)
    drain(session, list(range(2, 80)), sampling)
    changed = [*range(2, 50), *range(90, 110)]
    assert drain(session, changed, sampling) == drain(Session(model), changed, sampling)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_interrupted_turn_goes_on_with_the_same_tokens(
    make_model: Make, tmp_path: Path, temperature: float
) -> None:
    model = small(make_model)
    prompt = list(range(2, 70))
    whole = drain(Session(model), prompt, Sampling(temperature, seed=5, max_tokens=12))
    first = Session(model)
    begun = drain(first, prompt, Sampling(temperature, seed=5, max_tokens=4))
    first.save(tmp_path / "kv")
    second = Session(model)
    second.load(tmp_path / "kv")
    rest = drain(second, [*prompt, *begun], Sampling(temperature, seed=5, max_tokens=8))
    assert begun + rest == whole
    assert second.prefilled_tokens == 1


def test_a_damaged_state_file_is_refused_and_changes_nothing(
    make_model: Make, tmp_path: Path
) -> None:
    session = Session(small(make_model))
    drain(session, [5, 6, 7], Sampling(max_tokens=1))
    (tmp_path / "kv").write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        session.load(tmp_path / "kv")
    assert session.token_ids == [5, 6, 7]


def test_an_empty_prompt_is_refused(make_model: Make) -> None:
    with pytest.raises(UsageError, match="empty"):
        drain(Session(small(make_model)), [], Sampling())


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_a_batch_samples_what_each_row_alone_would(
    make_model: Make, lengths: list[int], temperature: float
) -> None:
    model = small(make_model)
    prefix = list(range(2, 40))
    rows = [[(7 * n + k) % 250 + 2 for k in range(length)] for n, length in enumerate(lengths)]
    sampling = Sampling(temperature, max_tokens=6)
    together = Batch(model, prefix, [f"s{n}" for n in range(len(rows))])
    joint = together.generate(rows, sampling)
    more = together.generate([[3, 4] if n % 2 == 0 else None for n in range(len(rows))], sampling)
    for n, row in enumerate(rows):
        alone = Batch(model, prefix, [f"s{n}"])
        assert alone.generate([row], sampling)[0].token_ids == joint[n].token_ids
        if n % 2 == 0:
            assert alone.generate([[3, 4]], sampling)[0].token_ids == more[n].token_ids
        else:
            assert more[n].token_ids == []


def test_sampling_follows_the_distribution_and_top_p_cuts_its_tail() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    draws = torch.linspace(0, 1, 1001)[:-1]
    ids, _ = pick(logits.expand(1000, -1), Sampling(temperature=1.0), draws)
    assert torch.bincount(ids, minlength=4).tolist() == pytest.approx([500, 300, 150, 50], abs=2)
    ids, logprobs = pick(logits.expand(1000, -1), Sampling(temperature=1.0, top_p=0.8), draws)
    assert sorted(set(ids.tolist())) == [0, 1]
    assert logprobs.exp().max() == pytest.approx(0.625, abs=1e-5)


class Only:
    """Allows one set of tokens behind each other; free behind the last."""

    def __init__(self, *sets: set[int], is_allowed: bool = True) -> None:
        self.left = [Tokens(frozenset(ids), is_allowed) for ids in sets]

    @property
    def is_free(self) -> bool:
        return not self.left

    def mask(self) -> Tokens:
        return self.left[0]

    def accept(self, number: int) -> bool:
        now = self.left.pop(0) if self.left else Tokens(frozenset(), False)
        return (number in now.ids) == now.is_allowed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_guide_decides_between_the_tokens_it_allows(make_model: Make, temperature: float) -> None:
    model, prompt = small(make_model), list(range(2, 30))
    free = drain(Session(model), prompt, Sampling(temperature, max_tokens=4))
    named = [{17, 18, 19}, {40}]
    drawn = list(Session(model).generate(prompt, Sampling(temperature, max_tokens=4), Only(*named)))
    assert drawn[0].id in named[0]
    assert drawn[1].id == 40
    assert drawn[1].logprob == pytest.approx(0.0, abs=1e-6)
    others = Only({free[0]}, is_allowed=False)
    (other,) = Session(model).generate(prompt, Sampling(temperature, max_tokens=1), others)
    assert other.id != free[0]


def test_a_guide_that_allows_what_comes_anyway_changes_nothing(make_model: Make) -> None:
    model, prompt = small(make_model), list(range(2, 30))
    sampling = Sampling(max_tokens=6)
    free = drain(Session(model), prompt, sampling)
    guided = Session(model).generate(prompt, sampling, Only(*[{255}] * 3, is_allowed=False))
    assert 255 not in free
    assert [token.id for token in guided] == free


def test_end_of_sentence_waits_for_the_least_number_of_tokens(make_model: Make) -> None:
    model, prompt = small(make_model), list(range(2, 30))
    eos = model.config.eos_token_id

    def end(session: Session, sampling: Sampling) -> list[int]:
        guide = Only(*[{eos, 9}] * sampling.max_tokens)
        return [token.id for token in session.generate(prompt, sampling, guide)]

    with torch.no_grad():
        model.head.weight[eos] = 0
        model.head.weight[9] = 0  # equal scores: the smaller id comes
    assert end(Session(model), Sampling(0.0, max_tokens=6)) == [eos]
    assert end(Session(model), Sampling(0.0, max_tokens=6, min_tokens=3)) == [9, 9, 9, eos]


def test_a_text_is_scored_as_it_would_be_sampled(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(small(make_model))
    prompt = list(range(2, 40))
    tokens = list(session.generate(prompt, Sampling(1.0, seed=3, max_tokens=30, num_top=4)))
    before = list(session.token_ids)
    monkeypatch.setattr("baleen.engine.session._SCORED_AT_ONCE", 16)
    scores = session.score([*prompt, *(token.id for token in tokens)])
    assert len(scores) == len(prompt) + len(tokens)
    assert scores[0] != scores[0]
    assert scores[len(prompt) :] == pytest.approx([token.logprob for token in tokens], abs=1e-4)
    assert session.token_ids == before
    for token in tokens:
        assert len(token.top) == 4
        assert [logprob for _, logprob in token.top] == sorted(
            (logprob for _, logprob in token.top), reverse=True
        )
        assert token.logprob <= token.top[0][1] + 1e-6
