"""One more turn costs one turn, and says so when it cannot."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baleen.protocol import Encoder

TOOL = {"type": "function", "function": {"name": "f"}}
SYSTEM = {"role": "system", "content": "s"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "reasoning_content": "r"}


def round_of(number: int, num_calls: int) -> list[dict[str, Any]]:
    """An assistant message that calls, and its results, last one first."""
    calls = [
        {
            "id": f"call_{n:02d}_{number}",
            "type": "function",
            "function": {"name": "f", "arguments": f'{{"n": {n}}}'},
        }
        for n in range(num_calls)
    ]
    results = [{"role": "tool", "tool_call_id": c["id"], "content": c["id"]} for c in calls[::-1]]
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *results]


def turns(dice: random.Random) -> list[list[dict[str, Any]]]:
    """A conversation in steps: each begins with an answer and ends where the next one is due."""
    steps = [[SYSTEM, user("q")]]
    for number in range(dice.randint(1, 5)):
        if dice.random() < 0.6:
            step = round_of(number, dice.randint(1, 3))
            if dice.random() < 0.3:
                step.append(user("and?"))
        else:
            step = [answer(f"a{number}"), user(f"q{number}")]
            if dice.random() < 0.3:
                step.insert(1, {"role": "latest_reminder", "content": "today"})
        steps.append(step)
    return steps


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    revision=st.sampled_from(["preview", "0731", "v4.1"]),
    flavor=st.sampled_from(["api", "checkpoint"]),
    options=st.sampled_from([{"tools": [TOOL]}, {"thinking": False}, {}]),
)
def test_extending_equals_encoding_all(
    tokenizer: Tokenizer, seed: int, revision: str, flavor: str, options: dict[str, Any]
) -> None:
    encoder = Encoder(revision, flavor)
    first, *more = turns(random.Random(seed))
    messages = list(first)
    prompt = encoder.encode(messages, **options)
    for step in more:
        messages += step
        before, prompt = prompt, encoder.extend(prompt, step)
        whole = encoder.encode(messages, **options)
        assert list(prompt.segments) == list(whole.segments)
        assert prompt.token_ids(tokenizer) == whole.token_ids(tokenizer)
        assert prompt.text.startswith(before.text) == (prompt.cache_break_reason is None)
        if "tools" in options or "thinking" in options:
            assert prompt.parent is before


def test_reasoning_that_is_dropped_is_named_as_the_break() -> None:
    encoder = Encoder()
    prompt = encoder.encode([user("q")], effort="low")
    later = encoder.extend(prompt, [answer("a"), user("z")])
    assert later.cache_break_reason == "messages[1] (assistant) is rendered differently"


@pytest.mark.parametrize(
    ("changed", "options", "reason"),
    [
        ([user("q"), answer("b"), user("z")], {}, "messages[1] (assistant)"),
        ([user("p"), answer("a"), user("z")], {}, "messages[0] (user)"),
        ([SYSTEM, user("q"), answer("a")], {}, "front of the prompt"),
        ([user("q"), answer("a")], {"effort": "max"}, "front of the prompt"),
    ],
)
def test_the_first_difference_is_named(
    changed: list[dict[str, Any]], options: dict[str, Any], reason: str
) -> None:
    encoder = Encoder()
    before = encoder.encode([user("q"), answer("a"), user("x")], tools=[TOOL])
    after = encoder.encode(changed, tools=[TOOL], previous=before, **options)
    assert after.cache_break_reason is not None
    assert reason in after.cache_break_reason


def test_a_conversation_that_goes_on_breaks_nothing() -> None:
    encoder = Encoder()
    before = encoder.encode([user("q")], tools=[TOOL])
    after = encoder.encode([user("q"), answer("a"), user("z")], tools=[TOOL], previous=before)
    assert after.cache_break_reason is None
    assert after.text.startswith(before.text)
