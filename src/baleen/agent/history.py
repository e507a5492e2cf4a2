"""Everything that has happened in a run, folded from its records.

The same fold is fed by a live run and by a resumed one, so there is one way to be in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from baleen.agent import records
from baleen.agent.base import ToolCall, Turn
from baleen.agent.errors import WalError


@dataclass
class CallState:
    """One call of a finished turn and how far it has come."""

    call: ToolCall
    dispatched: records.Call | None = None
    result: records.Result | None = None


@dataclass
class TurnState:
    """One turn: the tokens that led to it, those sampled, and its reading once it is over."""

    prompt_ids: list[int] = field(default_factory=list)
    """Only what this turn added to the context."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reading: Turn | None = None
    at: str = ""
    calls: list[CallState] = field(default_factory=list)
    after_resume: bool = False
    """A later process than the one that began the turn has continued it."""

    @property
    def unresolved(self) -> int | None:
        """Index of the first call without a result."""
        return next((i for i, state in enumerate(self.calls) if state.result is None), None)


class History:
    """The state of a run; `apply` is its only way to change."""

    def __init__(self) -> None:
        self.start: records.Start | None = None
        self.policy: str | None = None
        self.turns: list[TurnState] = []
        self.boxes: list[records.Box] = []
        self.resumed: list[records.Resumed] = []
        self.end: records.End | None = None

    def apply(self, record: records.Record) -> None:
        """Take in the next record.

        Raises:
            WalError: it cannot follow what came before.
        """
        match record:
            case records.Start():
                self.start = record
            case records.Policy():
                self.policy = record.version
            case records.Prompt():
                self._open_turn(record.turn).prompt_ids.extend(record.token_ids)
            case records.Tokens():
                turn = self._open_turn(record.turn)
                turn.token_ids.extend(record.token_ids)
                turn.logprobs.extend(record.logprobs)
            case records.TurnDone():
                turn = self._open_turn(record.turn)
                turn.reading, turn.at = record.reading, record.at
                turn.calls = [CallState(call) for call in record.reading.calls]
            case records.Box():
                self.boxes.append(record)
            case records.Call():
                self._call(record.turn, record.index).dispatched = record
            case records.Result():
                self._call(record.turn, record.index).result = record
            case records.Resumed():
                self._resume(record)
            case records.End():
                self.end = record

    @property
    def run_id(self) -> str:
        """Name of the run, unique in the world."""
        return self._started.run_id

    @property
    def question(self) -> str:
        """What the user asked."""
        return self._started.question

    @property
    def current(self) -> TurnState | None:
        """The turn that is being sampled, or None between turns."""
        if self.turns and self.turns[-1].reading is None:
            return self.turns[-1]
        return None

    @property
    def finished_turns(self) -> list[TurnState]:
        """Turns whose sampling is over."""
        return self.turns if self.current is None else self.turns[:-1]

    @property
    def calls(self) -> list[CallState]:
        """All calls of the run in the order in which the model made them."""
        return [state for turn in self.turns for state in turn.calls]

    @property
    def context_ids(self) -> list[int]:
        """The exact tokens of the context so far, empty for endpoints that know none."""
        return [i for turn in self.turns for i in (*turn.prompt_ids, *turn.token_ids)]

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens sampled in the whole run, by count of ids or by the endpoint's own count."""
        total = 0
        for turn in self.turns:
            usage = turn.reading.usage.completion_tokens if turn.reading else 0
            total += max(len(turn.token_ids), usage)
        return total

    @property
    def answer(self) -> str:
        """The content of the last finished turn if that made no call, else nothing."""
        last = self.finished_turns[-1].reading if self.finished_turns else None
        return last.content if last is not None and not last.calls else ""

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as Chat Completions messages, without a turn in progress."""
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": self._started.system},
            {"role": "user", "content": self._started.question},
        ]
        for turn in self.finished_turns:
            messages.append(_assistant(turn))
            messages.extend(
                {"role": "tool", "tool_call_id": state.call.id, "content": state.result.text}
                for state in turn.calls
                if state.result is not None
            )
        return messages

    @property
    def _started(self) -> records.Start:
        if self.start is None:
            raise WalError("the run has no start record", remedy="begin the run anew")
        return self.start

    def _open_turn(self, number: int) -> TurnState:
        if number == len(self.turns) and self.current is None:
            self.turns.append(TurnState())
        if number != len(self.turns) - 1 or self.turns[number].reading is not None:
            raise WalError(f"a record of turn {number} follows turn {len(self.turns) - 1}")
        return self.turns[number]

    def _call(self, turn: int, index: int) -> CallState:
        if turn != len(self.turns) - 1 or index >= len(self.turns[turn].calls):
            raise WalError(f"call {index} of turn {turn} was never made")
        return self.turns[turn].calls[index]

    def _resume(self, record: records.Resumed) -> None:
        self.resumed.append(record)
        self.end = None
        if self.current is not None:
            self.current.after_resume = True


def _assistant(turn: TurnState) -> dict[str, Any]:
    reading = turn.reading
    assert reading is not None, "only finished turns become messages"
    message: dict[str, Any] = {"role": "assistant", "content": reading.content}
    message.update(dict.fromkeys(reading.reasoning_fields, reading.reasoning))
    if reading.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in reading.calls
        ]
    return message
