"""The calls of one turn: the one being written, those that are complete, the one cut off."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baleen.protocol.call import CallBuilder, Count
from baleen.protocol.events import ArgumentsDelta, CallEnd, CallStart, Event
from baleen.protocol.schema import Schema
from baleen.protocol.turn import ParsedCall, RepairKind

MintId = Callable[[int, bool], str]
"""Makes the id of a call from its index and from whether the turn has no reasoning."""


class CallLog:
    """Opens and closes calls; with ``reports`` False it takes them and says nothing."""

    def __init__(
        self,
        tools: Mapping[str, Schema],
        events: list[Event],
        count: Count,
        mint: MintId,
        *,
        reports: bool,
        repair: bool,
    ) -> None:
        self.reports = reports
        self.finished: list[ParsedCall] = []
        self.incomplete: list[ParsedCall] = []
        self._tools = tools
        self._events = events
        self._count = count
        self._mint = mint
        self._repair = repair
        self._num_calls = 0
        self._open: CallBuilder | None = None

    @property
    def is_open(self) -> bool:
        """Whether a call is being written."""
        return self._open is not None

    @property
    def current(self) -> CallBuilder:
        """The call being written."""
        if self._open is None:
            raise AssertionError("text of a call without a call")
        return self._open

    def open(self, name: str, *, without_reasoning: bool) -> CallBuilder:
        """Begin a call."""
        index = self._num_calls
        self._num_calls += 1
        call = CallBuilder(
            self._mint(index, without_reasoning),
            name,
            self._tools.get(name),
            repair=self._repair,
            emit=self._emitter(index),
            count=self._count,
        )
        if self.reports:
            self._events.append(CallStart(index, call.id, name))
        self._open = call
        return call

    def _emitter(self, index: int) -> Callable[[str], None]:
        if not self.reports:
            return _say_nothing
        append = self._events.append

        def emit(text: str) -> None:
            append(ArgumentsDelta(index, text))

        return emit

    def close(self) -> None:
        """The call is complete."""
        finished = self.current.close()
        self._open = None
        if self.reports:
            self.finished.append(finished)
            self._events.append(CallEnd(self._num_calls - 1, finished.status))
        else:
            self._count(RepairKind.SUPPRESSED_CALL)

    def abandon(self) -> bool:
        """The output ended; returns whether that has cut off a call."""
        cut, self._open = self._open, None
        if cut is None or not self.reports:
            return False
        self.incomplete.append(cut.abandon())
        return True


def _say_nothing(text: str) -> None:
    """Take the arguments of a call that is not reported."""
