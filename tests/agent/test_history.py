"""The state of a run follows from its records alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from baleen.agent import records
from baleen.agent.base import ToolCall, Turn, Usage
from baleen.agent.errors import WalError
from baleen.agent.history import History
from baleen.agent.journal import Journal, read_history
from baleen.agent.outcome import Outcome

START = records.Start("run-1", "Be brief.", "Which port?", "2026-01-31T12:00:00.000Z")
CALL = ToolCall("call_00_x", "bash", '{"command": "ls"}')
READING = Turn("Look.", "", (CALL,), "stop", Usage(10, 3, 0), 0.5, 0.1)
RESULT = records.Result(0, 0, "port = 1", "box", 0, 0.1, False, "2026-01-31T12:00:02.000Z")
ALL_KINDS: list[records.Record] = [
    START,
    records.Policy("nano:abc"),
    records.Box("box-1", "sandbox.log", 0.01, "2026-01-31T12:00:00.000Z"),
    records.Prompt(0, [0, 5, 6]),
    records.Tokens(0, [7], [-0.25]),
    records.Tokens(0, [8, 1], [-0.5, -1.0]),
    records.TurnDone(0, READING, "2026-01-31T12:00:01.000Z"),
    records.Call(0, 0, CALL.id, "key", 60.0, "box-1", "2026-01-31T12:00:01.000Z"),
    RESULT,
    records.Resumed("2026-01-31T12:00:03.000Z"),
    records.Prompt(1, [9]),
    records.End(Outcome.BUDGET, "turns", "no answer", "2026-01-31T12:00:04.000Z"),
]


def fold(*sequence: records.Record) -> History:
    history = History()
    for record in sequence:
        history.apply(record)
    return history


def test_every_kind_of_record_survives_the_file(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "wal", START)
    for record in ALL_KINDS[1:]:
        journal.write(record)
    journal.close()
    reread = read_history(tmp_path / "wal")
    assert vars(reread) == vars(fold(*ALL_KINDS))
    assert {type(record) for record in ALL_KINDS} == set(records.KINDS.values())


def test_the_context_is_prompts_and_completions_in_order() -> None:
    assert fold(*ALL_KINDS).context_ids == [0, 5, 6, 7, 8, 1, 9]


def test_messages_carry_reasoning_calls_and_results() -> None:
    assert fold(*ALL_KINDS).messages()[2:] == [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Look.",
            "tool_calls": [
                {
                    "id": "call_00_x",
                    "type": "function",
                    "function": {"name": "bash", "arguments": '{"command": "ls"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_00_x", "content": "port = 1"},
    ]


def test_reasoning_goes_back_under_the_names_it_came_with() -> None:
    reading = Turn("Hm.", "x", (), "stop", Usage(), reasoning_fields=("reasoning",))
    message = fold(START, records.TurnDone(0, reading, "")).messages()[-1]
    assert message == {"role": "assistant", "content": "x", "reasoning": "Hm."}


def test_a_turn_in_progress_is_not_a_message_but_is_context() -> None:
    history = fold(START, records.Prompt(0, [1, 2]), records.Tokens(0, [3], [0.0]))
    assert len(history.messages()) == 2
    assert history.context_ids == [1, 2, 3]
    assert history.current is not None


def test_resuming_forgets_an_earlier_end() -> None:
    end = records.End(Outcome.INFRA_ERROR, "endpoint", "down", "")
    history = fold(START, end, records.Resumed(""))
    assert history.end is None


@pytest.mark.parametrize(
    "record",
    [RESULT, records.Tokens(1, [1], [0.0]), records.Call(0, 1, "", "", 1.0, "", "")],
    ids=["result-without-call", "tokens-of-a-later-turn", "call-never-made"],
)
def test_a_record_that_cannot_follow_is_refused(record: records.Record) -> None:
    with pytest.raises(WalError):
        fold(START, records.Prompt(0, [1]), record)


def test_a_record_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(WalError, match="another version of baleen"):
        records.from_fields({"kind": "dream", "turn": 1})


def test_a_record_with_other_fields_is_refused() -> None:
    with pytest.raises(WalError, match="another version of baleen"):
        records.from_fields({"kind": "prompt", "turn": 1, "tokens": []})
