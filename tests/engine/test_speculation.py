"""Drafts change how fast tokens come, never which."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen.engine import DraftingSession, Sampling, Session
from baleen.engine.speculation import Drafter, doubtful
from baleen.errors import UsageError
from baleen.model import Transformer

Make = Callable[..., Transformer]


def drafting(make_model: Make, seed: int = 0, **fields: object) -> Transformer:
    shape = {"num_hidden_layers": 3, "compress_ratios": (0, 4, 16, 0), "num_hash_layers": 1}
    return make_model(seed, **{**shape, "num_nextn_predict_layers": 1, **fields})


def drain(session: Session, prompt: Sequence[int], sampling: Sampling) -> list[tuple[int, float]]:
    return [(token.id, token.logprob) for token in session.generate(prompt, sampling)]


def same(ours: list[tuple[int, float]], plain: list[tuple[int, float]]) -> bool:
    """Equal tokens; log-probabilities to the rounding of passes of different width."""
    close = all(abs(a - b) <= 1e-4 for (_, a), (_, b) in zip(ours, plain, strict=True))
    return [token for token, _ in ours] == [token for token, _ in plain] and close


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 99),
    length=st.integers(1, 90),
    draft_tokens=st.integers(1, 4),
    max_tokens=st.integers(1, 16),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    ratios=st.lists(st.sampled_from([0, 4, 16]), min_size=3, max_size=3),
)
def test_random_models_write_what_plain_decoding_writes(
    make_model: Make,
    seed: int,
    length: int,
    draft_tokens: int,
    max_tokens: int,
    temperature: float,
    ratios: list[int],
) -> None:
    model = drafting(make_model, seed, compress_ratios=(*ratios, 0))
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(2, 256, (length,), generator=generator).tolist()
    sampling = Sampling(temperature, seed=seed, max_tokens=max_tokens)
    plain = drain(Session(model), prompt, sampling)
    assert same(drain(DraftingSession(model, draft_tokens), prompt, sampling), plain)


class Oracle(Drafter):
    """Drafts the tokens that will be written, but for every `wrong_every`-th."""

    def __init__(self, model: Transformer, written: list[int], start: int, wrong_every: int):
        self.written, self.start, self.wrong_every = written, start, wrong_every
        super().__init__(model)

    def propose(self, token: int, count: int, position: int, sampling: Sampling) -> list[int]:
        right = self.written[position - self.start :][:count]
        if self.model.config.eos_token_id in right:
            right = right[: right.index(self.model.config.eos_token_id)]
        return [
            (draft + 1) % 256 if (position + n) % self.wrong_every == 0 else draft
            for n, draft in enumerate(right)
        ]


@pytest.mark.parametrize("wrong_every", [1, 2, 3, 1000])
@pytest.mark.parametrize("draft_tokens", [1, 3])
def test_any_pattern_of_right_and_wrong_drafts_gives_the_same_tokens(
    make_model: Make, wrong_every: int, draft_tokens: int
) -> None:
    model = drafting(make_model, 5)
    prompt, sampling = list(range(2, 50)), Sampling(max_tokens=24)
    plain = drain(Session(model), prompt, sampling)
    session = DraftingSession(model, draft_tokens)
    written = [token for token, _ in plain]
    session.drafter = Oracle(model, written, len(prompt), wrong_every)
    assert same(drain(session, prompt, sampling), plain)
    assert session.drafted_tokens >= session.accepted_tokens
    if wrong_every == 1000:
        assert session.accepted_tokens == session.drafted_tokens - session.doubted_tokens
        assert session.decode_passes <= 23 / (draft_tokens + 1) + 1 + 8 * session.doubted_tokens
    if wrong_every == 1:
        assert session.accepted_tokens == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_turn_after_turn_equals_plain_sessions(make_model: Make, temperature: float) -> None:
    model = drafting(make_model, 8)
    plain, ours = Session(model), DraftingSession(model, 2)
    prompt = list(range(2, 40))
    for turn in range(4):
        sampling = Sampling(temperature, seed=turn, max_tokens=11)
        wanted = drain(plain, prompt, sampling)
        assert same(drain(ours, prompt, sampling), wanted)
        prompt = [*prompt, *(token for token, _ in wanted), 9, 8, 7 + turn]
        if turn == 1:
            prompt = [*prompt[:20], *range(100, 130)]  # the client rewrote history


def test_a_turn_given_up_in_the_middle_leaves_a_usable_session(make_model: Make) -> None:
    model = drafting(make_model, 12)
    prompt, sampling = list(range(2, 40)), Sampling(max_tokens=20)
    plain = drain(Session(model), prompt, sampling)
    assert len(plain) > 8
    for taken in range(1, 8):
        session = DraftingSession(model, 3)
        session.drafter = Oracle(model, [token for token, _ in plain], len(prompt), 5)
        stream = session.generate(prompt, sampling)
        begun = [next(stream).id for _ in range(taken)]
        stream.close()
        rest = drain(session, [*prompt, *begun], Sampling(max_tokens=20 - taken))
        assert same(rest, plain[taken:])


def test_generation_ends_behind_the_end_token_drafted_or_not(make_model: Make) -> None:
    model = drafting(make_model, 10)
    prompt = list(range(2, 30))
    plain = [token for token, _ in drain(Session(model), prompt, Sampling(max_tokens=30))]
    model.config = type(model.config)(**{**vars(model.config), "eos_token_id": plain[12]})
    short = plain[: plain.index(plain[12]) + 1]
    for drafts in (1, 2, 4):
        session = DraftingSession(model, drafts)
        session.drafter = Oracle(model, plain, len(prompt), 1000)
        written = drain(session, prompt, Sampling(max_tokens=30))
        assert [token for token, _ in written] == short


def test_a_saved_drafting_session_goes_on(make_model: Make, tmp_path: object) -> None:
    model = drafting(make_model, 11)
    prompt, sampling = list(range(2, 40)), Sampling(max_tokens=10)
    session = DraftingSession(model, 2)
    written = [token for token, _ in drain(session, prompt, sampling)]
    path = f"{tmp_path}/kv"
    session.save(path)
    loaded = DraftingSession(model, 2)
    loaded.load(path)
    following = [*prompt, *written, 5, 6]
    assert same(drain(loaded, following, sampling), drain(Session(model), following, sampling))


def test_close_draws_are_doubted() -> None:
    logits = torch.tensor([[1.0, 0.99999, 0.0], [1.0, 0.9, 0.0]])
    assert doubtful(logits, Sampling(), 0) == [True, False]
    even = torch.zeros(1, 2)
    seeds = range(2000)
    doubts = [doubtful(even, Sampling(1.0, seed=seed), 0)[0] for seed in seeds]
    assert sum(doubts) < 5  # a border at 0.5, hit within a ten-thousandth


def test_drafts_need_a_block_and_a_count(make_model: Make) -> None:
    with pytest.raises(UsageError, match="no MTP block"):
        DraftingSession(make_model(0))
    with pytest.raises(UsageError, match="draft_tokens = 0"):
        DraftingSession(drafting(make_model), 0)


def test_drafts_under_a_guide_are_refused(make_model: Make) -> None:
    session = DraftingSession(drafting(make_model))
    with pytest.raises(UsageError, match="without a guide"):
        next(iter(session.generate([3, 4, 5], Sampling(min_tokens=2))))
