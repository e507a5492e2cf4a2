"""What comes next in a run: a pure function of its history.

Order of the checks, once per step: a turn in progress is sampled on; a finished turn without calls
ends the run; a call without a result is made; then, before another turn, invalid calls, repetition,
turns and tokens are checked in that order. Time is not known here: the loop watches the deadline.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baleen.agent.base import ToolCall, Turn
from baleen.agent.history import CallState, History
from baleen.agent.limits import Limits
from baleen.agent.outcome import Outcome


@dataclass(frozen=True)
class Sample:
    """Let the model continue, by at most so many tokens."""

    max_tokens: int


@dataclass(frozen=True)
class Dispatch:
    """Make the call with this index in the last turn."""

    turn: int
    index: int


@dataclass(frozen=True)
class Finish:
    """End the run."""

    outcome: Outcome
    cause: str
    message: str


Step = Sample | Dispatch | Finish


def decide(history: History, limits: Limits) -> Step:
    """The next step of a run that has not ended."""
    if history.current is not None or not history.turns:
        return _sample(history, limits)
    turn = history.turns[-1]
    assert turn.reading is not None, "a turn without a reading is the current one"
    if turn.reading.finish_reason == "length":
        return Finish(
            Outcome.BUDGET,
            "turn-cut",
            f"the turn was cut after {turn.reading.usage.completion_tokens} tokens",
        )
    if not turn.calls:
        return _answered(turn.reading)
    if turn.unresolved is not None:
        return Dispatch(len(history.turns) - 1, turn.unresolved)
    return _stuck(history.calls, limits) or _sample(history, limits)


def canonical_arguments(call: ToolCall) -> str:
    """One spelling for equal arguments; text that is no JSON object stands for itself."""
    try:
        value: Any = json.loads(call.arguments)
    except ValueError:
        return call.arguments
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _sample(history: History, limits: Limits) -> Step:
    num_finished = len(history.finished_turns)
    if num_finished >= limits.max_turns:
        return Finish(Outcome.BUDGET, "turns", f"no answer within {limits.max_turns} turns")
    begun = len(history.current.token_ids) if history.current else 0
    spent_before = history.num_sampled_tokens - begun
    left = min(limits.max_turn_tokens, limits.max_tokens - spent_before)
    if left <= 0:
        return Finish(Outcome.BUDGET, "tokens", f"no answer within {limits.max_tokens} tokens")
    return Sample(left)


def _answered(reading: Turn) -> Finish:
    if reading.content.strip():
        return Finish(Outcome.STOP, "answer", "the model answered")
    return Finish(Outcome.MODEL_ERROR, "empty-answer", "the model ended its turn without an answer")


def _stuck(calls: Sequence[CallState], limits: Limits) -> Finish | None:
    last = calls[-limits.max_invalid :]
    if len(last) == limits.max_invalid and all(
        state.result is not None and state.result.source == "refused" for state in last
    ):
        return Finish(
            Outcome.MODEL_ERROR,
            "invalid-calls",
            f"the model made {limits.max_invalid} calls in a row that cannot be run",
        )
    seen = {
        (state.call.name, canonical_arguments(state.call), state.result and state.result.text)
        for state in calls[-limits.max_repeats :]
    }
    if len(calls) >= limits.max_repeats and len(seen) == 1:
        return Finish(
            Outcome.MODEL_ERROR,
            "repeated-call",
            f"{limits.max_repeats} times in a row the same call had the same result",
        )
    return None
