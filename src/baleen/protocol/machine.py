"""The state machine that reads a model's output.

It is fed ordinary text and marker tokens, by a lexer that knows which is which: for token ids that
is certain, for text every spelling of a marker counts as the marker. ``machine.text`` is the method
that takes text in the present state; markers have methods of their own. Every character is looked
at a bounded number of times, and between two calls a state keeps at most the few characters that
may belong to a tag.

::

    reasoning --</think>--> content --<DSML block>--> block --<DSML invoke>--> invoke
                                                      ^  |                     |   ^
                                              closer  |  v closer   parameter  v   |  </DSML
                                                      after                    value

A tag is read in a state of its own and then returns to the place that it stood in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from baleen.protocol import tokens
from baleen.protocol.call_log import CallLog, MintId
from baleen.protocol.events import ContentDelta, Event, ReasoningDelta
from baleen.protocol.foreign import JsonCallText
from baleen.protocol.prose import Gap, Prose
from baleen.protocol.schema import Schema
from baleen.protocol.tags import BLOCK_NAMES, Tag, TagText
from baleen.protocol.turn import RepairKind, Turn
from baleen.protocol.value_text import ValueText


class Place(StrEnum):
    """Where in a turn the machine is."""

    REASONING = "reasoning"
    CONTENT = "content"
    BLOCK = "block"
    """Inside a block, between invocations."""
    INVOKE = "invoke"
    """Inside an invocation, between parameters."""
    VALUE = "value"
    AFTER = "after"
    """Behind a block; another one may follow, text is dropped."""
    ENDED = "ended"
    """Behind the end-of-sentence token."""


class Machine:
    """Reads one turn, starting at ``start``.

    ``is_token_level`` says that markers are certain, ``repair`` allows repairs of values, ``calls``
    reports calls at all.
    """

    def __init__(
        self,
        *,
        start: Place,
        keeps_leading: bool,
        tools: Mapping[str, Schema],
        calls: bool,
        repair: bool,
        is_token_level: bool,
        mint: MintId,
    ) -> None:
        self.events: list[Event] = []
        self.repairs: dict[str, int] = {}
        self._repair = repair
        self._is_token_level = is_token_level
        drops = not keeps_leading
        self._reasoning = Prose(ReasoningDelta, self.events, drops_newlines=drops)
        self._content = Prose(ContentDelta, self.events, drops_newlines=drops)
        self._calls = CallLog(tools, self.events, self.count, mint, reports=calls, repair=repair)
        self._gap = Gap(self._note_stray)
        self._value: ValueText | None = None
        self._tag: TagText | None = None
        self._json_call: JsonCallText | None = None
        self._is_probing = False
        self._block_is_foreign = False
        self._is_cut = False
        self._place = start
        self.text: Callable[[str], None] = self._ignore
        self._enter(start)

    def count(self, kind: RepairKind) -> None:
        """Count a repair."""
        self.repairs[kind] = self.repairs.get(kind, 0) + 1

    # --- places --------------------------------------------------------------------------------

    def _enter(self, place: Place) -> None:
        self._place = place
        self._tag = None
        if place is Place.CONTENT:
            self.text = self._content.text
        elif place is Place.REASONING:
            self.text = self._reasoning.text
        elif place is Place.VALUE:
            self._value = ValueText(self._calls.current)
            self.text = self._value.text
        elif place is Place.ENDED:
            self.text = self._ignore
        else:
            takes_body = place is Place.INVOKE and self._calls.current.takes_body
            body = self._calls.current.feed_body if takes_body else None
            self._gap = Gap(self._note_stray, body)
            self.text = self._gap.text

    @property
    def _prose(self) -> Prose | None:
        """Where text is being said, None inside of markup."""
        if self._tag is not None or self._json_call is not None:
            return None
        if self._place is Place.CONTENT:
            return self._content
        return self._reasoning if self._place is Place.REASONING else None

    def _ignore(self, text: str) -> None:
        """Text behind the end of the turn."""

    def _note_stray(self) -> None:
        if self._place is Place.INVOKE:
            self._calls.current.count(RepairKind.STRAY_TEXT)
        else:
            after = self._place is Place.AFTER
            self.count(RepairKind.TEXT_AFTER_BLOCK if after else RepairKind.STRAY_TEXT)

    def _start_content(self) -> None:
        self._reasoning.newlines = 0
        self._content.drops_newlines = True
        self._enter(Place.CONTENT)

    def _leave_block(self) -> None:
        self._block_is_foreign = False
        self._enter(Place.AFTER if self._calls.reports else Place.CONTENT)

    # --- tags ----------------------------------------------------------------------------------

    def _start_tag(self, *, closes: bool) -> None:
        self._tag = TagText(closes=closes)
        self.text = self._tag_text

    def _tag_text(self, text: str) -> None:
        if self._tag is not None and (read := self._tag.feed(text)) is not None:
            tag, rest = read
            self._finish_tag(self._tag, tag)
            if rest:
                self.text(rest)

    def _finish_tag(self, collected: TagText, tag: Tag) -> None:
        home = self._place
        self._enter(Place.INVOKE if home is Place.VALUE else home)
        if collected.closes:
            self._close(tag, home)
        else:
            self._open(tag, home)

    def _open(self, tag: Tag, home: Place) -> None:
        if tag.word == "invoke":
            if home is not Place.BLOCK and home is not Place.INVOKE:
                self.count(RepairKind.BARE_INVOKE)
            self._open_call(tag)
        elif tag.word == "parameter":
            self._open_parameter(tag, home)
        elif home is Place.INVOKE:
            self._calls.current.count(RepairKind.STRAY_TAG)
        else:
            if tag.word not in BLOCK_NAMES or not tag.is_clean:
                self.count(RepairKind.BLOCK_NAME)
            self._enter(Place.BLOCK)

    def _open_call(self, tag: Tag) -> None:
        if self._calls.is_open:
            self._calls.current.count(RepairKind.INVOKE_CLOSER)
            self._calls.close()
        call = self._calls.open(tag.name or "", without_reasoning=not self._reasoning.pieces)
        if not tag.is_clean:
            call.count(RepairKind.TAG)
        if self._block_is_foreign:
            call.count(RepairKind.FOREIGN_MARKUP)
        self._enter(Place.INVOKE)
        if tag.closes_itself:
            call.count(RepairKind.SELF_CLOSING)
            self._close_call()

    def _open_parameter(self, tag: Tag, home: Place) -> None:
        if home is not Place.INVOKE:
            self.count(RepairKind.STRAY_TAG)
            self._enter(Place.BLOCK)
            return
        call = self._calls.current
        if not tag.is_clean:
            call.count(RepairKind.TAG)
        call.start_parameter(tag.name or "", tag.is_string)
        self._enter(Place.VALUE)
        if tag.closes_itself:
            call.count(RepairKind.SELF_CLOSING)
            self._end_value()

    def _close(self, tag: Tag, home: Place) -> None:
        if home is Place.VALUE:
            self._close_value(tag)
        elif home is Place.INVOKE:
            self._close_invoke(tag)
        elif home is Place.BLOCK and tag.word not in ("invoke", "parameter"):
            if tag.word not in BLOCK_NAMES:
                self.count(RepairKind.BLOCK_NAME)
            self._leave_block()
        else:
            self.count(RepairKind.STRAY_TAG)

    def _close_value(self, tag: Tag) -> None:
        """The value has ended at its marker; the word says what else has."""
        if tag.word != "parameter":
            self._calls.current.count(RepairKind.PARAMETER_CLOSER)
            if tag.word == "invoke" or tag.names_block:
                self._close_invoke(tag)

    def _close_invoke(self, tag: Tag) -> None:
        call = self._calls.current
        if tag.word == "parameter":
            call.count(RepairKind.STRAY_TAG)
            return
        if tag.word != "invoke":
            call.count(RepairKind.INVOKE_CLOSER)
        self._close_call()
        if tag.names_block:
            self._leave_block()

    def _close_call(self) -> None:
        self._calls.close()
        self._enter(Place.BLOCK)

    # --- the DSML token ------------------------------------------------------------------------

    def dsml(self) -> None:
        """The DSML token; what it begins depends on the bracket in front of it."""
        self._end_guesses()
        if self._tag is not None:
            tag, bracket = self._tag.break_off()
            self._finish_tag(self._tag, tag)
            if bracket:
                self.text(bracket)
        if self._place is Place.VALUE:
            self._dsml_in_value()
        elif (prose := self._prose) is not None:
            self._dsml_in_prose(prose)
        elif self._place is not Place.ENDED:
            self._start_tag_or_skip(self._gap.take_tail())

    def _start_tag_or_skip(self, bracket: str) -> None:
        if bracket:
            self._start_tag(closes=bracket == "</")
        else:
            self.count(RepairKind.STRAY_TOKEN)

    def _dsml_in_prose(self, prose: Prose) -> None:
        bracket = prose.take_tail()
        if not bracket:
            prose.flush()
        elif bracket == "<":
            prose.newlines = 0
            if prose is self._reasoning:
                self.count(RepairKind.CALL_IN_REASONING)
                self._start_content()
        self._start_tag_or_skip(bracket)

    def _dsml_in_value(self) -> None:
        value = self._current_value()
        bracket = value.take_bracket()
        if bracket == "</":
            value.put("")
            self._end_value()
            self._place = Place.VALUE
            self._start_tag(closes=True)
        elif bracket == "<" and self._repair and self._is_token_level:
            self._end_unclosed_value()
        elif bracket == "<" and self._repair and value.tail:
            self._is_probing = True
            self.text = self._probe
        else:
            value.put(bracket + tokens.DSML)

    def _current_value(self) -> ValueText:
        if self._value is None:
            raise AssertionError("text of a value without a value")
        return self._value

    def _end_value(self) -> None:
        self._calls.current.end_parameter()
        self._enter(Place.INVOKE)

    def _end_unclosed_value(self) -> None:
        """An opener within a value: its closer is missing, and one newline belonged to the tag."""
        self._calls.current.count(RepairKind.PARAMETER_CLOSER)
        self._end_value()
        self._start_tag(closes=False)

    def _probe(self, text: str) -> None:
        """Text level only: does a parameter's opener follow, or text about one?"""
        opener = self._current_value().probe(text)
        if opener is None:
            self._is_probing = False
            self.text = self._current_value().text
        elif opener:
            self._is_probing = False
            self._end_unclosed_value()
            self.text(opener)

    # --- other markers -------------------------------------------------------------------------

    def think_close(self) -> None:
        """The end of the reasoning."""
        self._end_guesses()
        if self._prose is self._reasoning:
            if self._reasoning.tail:
                self._reasoning.flush()
            self._start_content()
        else:
            self.control(tokens.THINK_CLOSE)

    def control(self, spelling: str) -> None:
        """A control token that means nothing here: verbatim in a value, dropped elsewhere."""
        self._end_guesses()
        if self._place is Place.VALUE and self._tag is None:
            self._current_value().put(spelling)
        elif self._place is not Place.ENDED:
            if (prose := self._prose) is not None:
                prose.flush()
            begins = not (self._reasoning.pieces or self._content.pieces)
            if spelling != tokens.THINK_OPEN or not begins:
                self.count(RepairKind.STRAY_TOKEN)

    def end_of_sentence(self) -> None:
        """The EOS token: the end, or at text level perhaps only text about it."""
        self._end_guesses()
        if self._place is Place.ENDED:
            return
        if self._is_token_level:
            self._settle()
            self._enter(Place.ENDED)
        elif self._place is Place.VALUE and self._tag is None:
            self._current_value().hold_end_of_sentence()
        elif (prose := self._prose) is not None:
            prose.flush()

    def _end_guesses(self) -> None:
        """Another marker decides what was waiting for more text: it was text."""
        if self._is_probing:
            self._is_probing = False
            value = self._current_value()
            value.end_probe()
            self.text = value.text
        elif self._json_call is not None:
            self._give_up_json_call(self._json_call)

    # --- foreign markup ------------------------------------------------------------------------

    def foreign_dsml(self, spelling: str, bracket: str) -> None:
        """A tag's beginning in another spelling; only text within a block of the right one."""
        self._end_guesses()
        if self._place in (Place.REASONING, Place.CONTENT, Place.AFTER):
            self._block_is_foreign = True
        if self._block_is_foreign:
            self.text(bracket)
            self.dsml()
        else:
            self.text(spelling)

    def foreign_call(self, spelling: str, *, opens: bool) -> None:
        """An element around a call written as one JSON object."""
        if opens:
            self._end_guesses()
        collected = self._json_call
        if collected is not None:
            self._finish_json_call(collected, spelling)
        elif opens and self._tag is None and self._place not in (Place.VALUE, Place.INVOKE):
            self._json_call = JsonCallText(spelling)
            self.text = self._json_call.feed
        else:
            self.text(spelling)

    def _give_up_json_call(self, collected: JsonCallText) -> None:
        self._json_call = None
        prose = self._prose
        self.text = self._gap.text if prose is None else prose.text
        self.text(collected.whole)

    def _finish_json_call(self, collected: JsonCallText, closer: str) -> None:
        call = collected.read()
        if call is None:
            self._give_up_json_call(collected)
            self.text(closer)
            return
        self._json_call = None
        if (prose := self._prose) is not None:
            if prose.tail:
                prose.flush()
            prose.newlines = 0
            if prose is self._reasoning:
                self.count(RepairKind.CALL_IN_REASONING)
        builder = self._calls.open(call.name, without_reasoning=not self._reasoning.pieces)
        builder.count(RepairKind.FOREIGN_MARKUP)
        builder.take_whole(call.arguments)
        self._close_call()
        self._leave_block()

    # --- the end -------------------------------------------------------------------------------

    def last_text(self, text: str) -> None:
        """The last text of a turn, held back because it may have begun a marker.

        In prose it is text. Within a call, which is cut off here, it is taken for half a tag.
        """
        if self._prose is not None or self._json_call is not None:
            self.text(text)

    def finish(self, reason: str) -> Turn:
        """The turn as read, given why the engine stopped."""
        if self._place is not Place.ENDED:
            self._settle()
        calls = self._calls
        if self._is_cut:
            reason = "length"
        elif reason == "stop" and calls.finished:
            reason = "tool_calls"
        return Turn(
            reasoning="".join(self._reasoning.pieces),
            content="".join(self._content.pieces),
            tool_calls=calls.finished,
            incomplete_calls=calls.incomplete,
            finish_reason=reason,
            repairs=self.repairs,
        )

    def _settle(self) -> None:
        """No more text comes: prose keeps what was held back for tags, a call is cut off."""
        if self._json_call is not None:
            self._give_up_json_call(self._json_call)
        if (prose := self._prose) is not None:
            prose.flush()
        in_tag = self._tag is not None and self._calls.reports
        self._is_cut = self._calls.abandon() or in_tag
