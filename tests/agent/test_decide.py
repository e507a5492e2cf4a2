"""What comes next follows from the history; limits end a run by name."""

from __future__ import annotations

import pytest

from baleen.agent import records
from baleen.agent.base import ToolCall, Turn, Usage
from baleen.agent.decide import Dispatch, Finish, Sample, decide
from baleen.agent.history import History
from baleen.agent.limits import Limits
from baleen.agent.outcome import Outcome
from baleen.errors import ConfigError

LIMITS = Limits(max_turns=5, max_tokens=100, max_turn_tokens=40, max_repeats=3, max_invalid=2)


def history_of(*turns: Turn, source: str = "box", resolve_last: bool = True) -> History:
    history = History()
    history.apply(records.Start("r", "s", "q", ""))
    for number, turn in enumerate(turns):
        history.apply(records.TurnDone(number, turn, ""))
        if number == len(turns) - 1 and not resolve_last:
            break
        for index in range(len(turn.calls)):
            history.apply(records.Result(number, index, "out", source, 0, 0.0, False, ""))
    return history


def turn(
    *commands: str, content: str = "", finish_reason: str = "stop", num_tokens: int = 10
) -> Turn:
    calls = tuple(
        ToolCall(f"call_{index:02d}", "bash", f'{{"command": "{command}"}}')
        for index, command in enumerate(commands)
    )
    return Turn("", content, calls, finish_reason, Usage(0, num_tokens, 0))


def test_a_new_run_begins_by_sampling() -> None:
    assert decide(history_of(), LIMITS) == Sample(40)


def test_a_turn_in_progress_is_sampled_on_within_its_own_bound() -> None:
    history = history_of()
    history.apply(records.Prompt(0, [1] * 50))
    history.apply(records.Tokens(0, [2] * 7, [0.0] * 7))
    assert decide(history, LIMITS) == Sample(40)


def test_the_first_call_without_a_result_comes_next() -> None:
    history = history_of(turn("a", "b"), resolve_last=False)
    assert decide(history, LIMITS) == Dispatch(0, 0)
    history.apply(records.Result(0, 0, "out", "box", 0, 0.0, False, ""))
    assert decide(history, LIMITS) == Dispatch(0, 1)


def test_an_answer_without_calls_stops() -> None:
    step = decide(history_of(turn(content="8443")), LIMITS)
    assert isinstance(step, Finish)
    assert step.outcome is Outcome.STOP


def outcome_of(history: History) -> tuple[Outcome, str]:
    step = decide(history, LIMITS)
    assert isinstance(step, Finish)
    return step.outcome, step.cause


def test_silence_is_a_model_error() -> None:
    assert outcome_of(history_of(turn(content=" \n"))) == (Outcome.MODEL_ERROR, "empty-answer")


def test_a_cut_turn_is_a_budget_matter_even_with_content() -> None:
    cut = turn(content="84", finish_reason="length")
    assert outcome_of(history_of(cut)) == (Outcome.BUDGET, "turn-cut")


def test_turns_run_out() -> None:
    turns = [turn(f"c{number}") for number in range(5)]
    assert outcome_of(history_of(*turns)) == (Outcome.BUDGET, "turns")


def test_tokens_run_out() -> None:
    turns = [turn(f"c{number}", num_tokens=50) for number in range(2)]
    assert outcome_of(history_of(*turns)) == (Outcome.BUDGET, "tokens")


def test_the_last_tokens_bound_the_next_turn() -> None:
    turns = [turn(f"c{number}", num_tokens=35) for number in range(2)]
    assert decide(history_of(*turns), LIMITS) == Sample(30)


def test_the_same_call_with_the_same_result_three_times_is_a_model_error() -> None:
    assert outcome_of(history_of(turn("a"), turn("a", "a"))) == (
        Outcome.MODEL_ERROR,
        "repeated-call",
    )


def test_spelling_the_same_arguments_differently_is_still_repeating() -> None:
    spaced = Turn("", "", (ToolCall("x", "bash", '{ "command":"a"}'),), "stop", Usage())
    assert outcome_of(history_of(turn("a"), spaced, turn("a")))[1] == "repeated-call"


def test_waiting_for_a_changing_result_is_not_repeating() -> None:
    history = history_of(turn("a"), turn("a"), turn("a"), resolve_last=False)
    history.apply(records.Result(2, 0, "another", "box", 0, 0.0, False, ""))
    assert isinstance(decide(history, LIMITS), Sample)


def test_calls_that_cannot_be_run_end_the_run() -> None:
    history = history_of(turn("a"), turn("b"), source="refused")
    assert outcome_of(history) == (Outcome.MODEL_ERROR, "invalid-calls")


def test_one_invalid_call_may_be_corrected() -> None:
    assert isinstance(decide(history_of(turn("a"), source="refused"), LIMITS), Sample)


def test_a_limit_of_zero_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="max_turns is 0"):
        Limits(max_turns=0)
