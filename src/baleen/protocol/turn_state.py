"""What a machine knows while it reads a turn, and how it moves from place to place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baleen.protocol.call_log import CallLog, MintId
from baleen.protocol.events import ContentDelta, Event, ReasoningDelta
from baleen.protocol.foreign import JsonCallText
from baleen.protocol.place import Place
from baleen.protocol.prose import Gap, Prose
from baleen.protocol.schema import Schema
from baleen.protocol.tags import TagText
from baleen.protocol.turn import RepairKind, Turn
from baleen.protocol.value_text import ValueText


class TurnState:
    """A turn, read up to here.

    ``text`` takes text in the present place. ``in_value`` says that this is a parameter's value and
    not a tag. ``tag`` is the tag being read, ``json_call`` the call that is written as one JSON
    object; both are None nearly always.
    The turn starts at ``start``; ``keeps_leading`` keeps newlines there, ``calls`` reports calls at
    all, ``repair`` allows repairs of values.
    """

    def __init__(
        self,
        *,
        start: Place,
        keeps_leading: bool,
        tools: Mapping[str, Schema],
        calls: bool,
        repair: bool,
        mint: MintId,
    ) -> None:
        self.events: list[Event] = []
        self.repairs: dict[str, int] = {}
        self.repairs_values = repair
        drops = not keeps_leading
        self.reasoning = Prose(ReasoningDelta, self.events, drops_newlines=drops)
        self.content = Prose(ContentDelta, self.events, drops_newlines=drops)
        self.calls = CallLog(tools, self.events, self.count, mint, reports=calls, repair=repair)
        self.gap = Gap(self._note_stray)
        self.value: ValueText | None = None
        self.in_value = False
        self.tag: TagText | None = None
        self.json_call: JsonCallText | None = None
        self.block_is_foreign = False
        self._is_cut = False
        self.place = start
        self.text: Callable[[str], None] = self._ignore
        self.enter(start)

    def count(self, kind: RepairKind) -> None:
        """Count a repair."""
        self.repairs[kind] = self.repairs.get(kind, 0) + 1

    def enter(self, place: Place) -> None:
        """Go to a place, out of any tag."""
        self.place = place
        self.in_value = place is Place.VALUE
        self.tag = None
        if place is Place.CONTENT:
            self.text = self.content.text
        elif place is Place.REASONING:
            self.text = self.reasoning.text
        elif place is Place.VALUE:
            self.value = ValueText(self.calls.current)
            self.text = self.value.text
        elif place is Place.ENDED:
            self.text = self._ignore
        else:
            takes_body = place is Place.INVOKE and self.calls.current.takes_body
            body = self.calls.current.feed_body if takes_body else None
            self.gap = Gap(self._note_stray, body)
            self.text = self.gap.text

    @property
    def prose(self) -> Prose | None:
        """Where text is being said, None inside of markup."""
        if self.tag is not None or self.json_call is not None:
            return None
        if self.place is Place.CONTENT:
            return self.content
        return self.reasoning if self.place is Place.REASONING else None

    def _ignore(self, text: str) -> None:
        """Text behind the end of the turn."""

    def _note_stray(self) -> None:
        if self.place is Place.INVOKE:
            self.calls.current.count(RepairKind.STRAY_TEXT)
        else:
            after = self.place is Place.AFTER
            self.count(RepairKind.TEXT_AFTER_BLOCK if after else RepairKind.STRAY_TEXT)

    def start_content(self) -> None:
        """The reasoning is over."""
        self.reasoning.newlines = 0
        self.content.drops_newlines = True
        self.enter(Place.CONTENT)

    def leave_block(self) -> None:
        """The block is over; another one, or dropped text, may follow."""
        self.block_is_foreign = False
        self.enter(Place.AFTER if self.calls.reports else Place.CONTENT)

    def current_value(self) -> ValueText:
        """The value being read."""
        if self.value is None:
            raise AssertionError("text of a value without a value")
        return self.value

    def end_value(self) -> None:
        """The value is complete."""
        self.calls.current.end_parameter()
        self.enter(Place.INVOKE)

    def close_call(self) -> None:
        """The call is complete; another one may follow."""
        self.calls.close()
        self.enter(Place.BLOCK)

    def give_up_json_call(self, collected: JsonCallText) -> None:
        """What seemed a call was text."""
        self.json_call = None
        prose = self.prose
        self.text = self.gap.text if prose is None else prose.text
        self.text(collected.whole)

    def settle(self) -> None:
        """No more text comes: prose keeps what was held back for tags, a call is cut off."""
        if self.json_call is not None:
            self.give_up_json_call(self.json_call)
        if (prose := self.prose) is not None:
            prose.flush()
        in_tag = self.tag is not None and self.calls.reports
        self._is_cut = self.calls.abandon() or in_tag

    def finish(self, reason: str) -> Turn:
        """The turn as read, given why the engine stopped."""
        if self.place is not Place.ENDED:
            self.settle()
        calls = self.calls
        if self._is_cut:
            reason = "length"
        elif reason == "stop" and calls.finished:
            reason = "tool_calls"
        return Turn(
            reasoning="".join(self.reasoning.pieces),
            content="".join(self.content.pieces),
            tool_calls=calls.finished,
            incomplete_calls=calls.incomplete,
            finish_reason=reason,
            repairs=self.repairs,
        )
