"""Which questions look like those that the bundled checkpoint was trained on."""

from __future__ import annotations

import random

import pytest

from baleen.agent.nano import is_within_reach
from baleen.rl.tasks.arithmetic import arithmetic_task
from baleen.rl.tasks.base import Split
from baleen.rl.tasks.lookup import lookup_task


@pytest.mark.parametrize("make", [lookup_task, arithmetic_task])
def test_every_trained_phrasing_is_within_reach(make: object) -> None:
    rng = random.Random(1)
    questions = [make(rng, Split.EVAL).question for _ in range(300)]  # type: ignore[operator]
    assert [question for question in questions if not is_within_reach(question)] == []


@pytest.mark.parametrize(
    "question",
    [
        "Hello",
        "Tell me a joke.",
        "Write a poem in French.",
        "What is 1.5 * 2?",
        "What is -2 * 0.5?",
    ],
)
def test_other_questions_are_not(question: str) -> None:
    assert not is_within_reach(question)
