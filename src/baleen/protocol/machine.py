"""The state machine that reads a model's output.

It is fed ordinary text and marker tokens, by a lexer that knows which is which: for token ids that
is certain, for text every spelling of a marker counts as the marker. Each state is a method that
takes text; markers are methods of their own. Every character is looked at a bounded number of
times, and between two calls a state keeps at most the few characters that may belong to a tag:
newlines, ``<`` and ``</`` in front of the DSML token.

::

    reasoning --</think>--> content --<DSML block>--> block --<DSML invoke>--> invoke
                                                      ^  |                     |   ^
                                              closer  |  v closer   parameter  v   |  </DSML
                                                      after                    value

Events are appended to ``events``, which the parser takes away after each feed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from baleen.protocol import tokens
from baleen.protocol.call import CallBuilder
from baleen.protocol.events import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    ContentDelta,
    Event,
    ReasoningDelta,
)
from baleen.protocol.schema import Schema
from baleen.protocol.tags import BLOCK_NAMES, Tag, read_tag
from baleen.protocol.turn import ParsedCall, RepairKind, Turn

_QUOTE_OR_END: Final = re.compile('[">]')
_PARAMETER_OPENERS: Final = ('parameter name="', ' parameter name="')

MintId = Callable[[int, bool], str]


class Place(StrEnum):
    """Where in a turn the machine is; a tag returns to the place that it stood in."""

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
    """Reads one turn; see the module for its states.

    ``is_token_level`` says that markers are certain, ``repair`` allows repairs of values,
    ``mint`` makes the id of a call from its index and from whether the turn has no reasoning.
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
        self.reasoning: list[str] = []
        self.content: list[str] = []
        self.calls: list[ParsedCall] = []
        self.incomplete: list[ParsedCall] = []
        self.repairs: dict[str, int] = {}
        self.is_cut = False
        self._tools = tools
        self._reports_calls = calls
        self._repair = repair
        self._is_token_level = is_token_level
        self._mint = mint
        self._tail = ""
        self._newlines = 0
        self._drops_newlines = not keeps_leading
        self._gap_is_clean = True
        self._pending_end = ""
        self._call: CallBuilder | None = None
        self._num_calls = 0
        self._tag: list[str] = []
        self._tag_is_quoted = False
        self._tag_closes = False
        self._probe = ""
        self._place = start
        self.text: Callable[[str], None] = self._text
        self._enter(start)

    # --- places --------------------------------------------------------------------------------

    def _enter(self, place: Place) -> None:
        self._place = place
        self._tail = ""
        self._gap_is_clean = True
        self.text = {
            Place.REASONING: self._text,
            Place.CONTENT: self._text,
            Place.BLOCK: self._skip,
            Place.AFTER: self._skip,
            Place.INVOKE: self._body,
            Place.VALUE: self._value,
            Place.ENDED: self._ignore,
        }[place]

    def _ignore(self, text: str) -> None:
        """Text behind the end of the turn."""

    # --- reasoning and content -----------------------------------------------------------------

    def _text(self, text: str) -> None:
        if self._tail:
            text = self._tail + text
            self._tail = ""
        newlines = 0
        if text[-1] in "\n</":
            body = text[:-2] if text.endswith("</") else text[:-1] if text[-1] == "<" else text
            self._tail = text[len(body) :]
            text = body.rstrip("\n")
            newlines = len(body) - len(text)
        if text:
            if self._newlines or self._drops_newlines:
                text = self._with_newlines(text)
            self._say(text)
            self._newlines = newlines
        else:
            self._newlines += newlines

    def _with_newlines(self, text: str) -> str:
        if self._drops_newlines:
            self._drops_newlines = False
            return text.lstrip("\n")
        return "\n" * self._newlines + text

    def _say(self, text: str) -> None:
        if self._place is Place.CONTENT:
            self.content.append(text)
            self.events.append(ContentDelta(text))
        else:
            self.reasoning.append(text)
            self.events.append(ReasoningDelta(text))

    def _flush_text(self) -> None:
        """Say what was held back for a marker that did not come."""
        text = ("" if self._drops_newlines else "\n" * self._newlines) + self._tail
        self._newlines, self._tail = 0, ""
        if text:
            self._drops_newlines = False
            self._say(text)

    def _start_content(self) -> None:
        self._newlines = 0
        self._drops_newlines = True
        self._enter(Place.CONTENT)

    # --- between tags --------------------------------------------------------------------------

    def _skip(self, text: str) -> None:
        text = self._without_tail(text)
        if self._gap_is_clean and text and not text.isspace():
            self._gap_is_clean = False
            after = self._place is Place.AFTER
            self.count(RepairKind.TEXT_AFTER_BLOCK if after else RepairKind.STRAY_TEXT)

    def _body(self, text: str) -> None:
        call = self._current()
        if not call.takes_body:
            text = self._without_tail(text)
            if self._gap_is_clean and text and not text.isspace():
                self._gap_is_clean = False
                call.count(RepairKind.STRAY_TEXT)
        elif text := self._without_tail(text):
            call.feed_body(text)

    def _without_tail(self, text: str) -> str:
        """The text so far without a ``<`` or ``</`` that may begin a tag; that is held back."""
        text = self._tail + text
        body = text[:-2] if text.endswith("</") else text[:-1] if text[-1] == "<" else text
        self._tail = text[len(body) :]
        return body

    # --- values --------------------------------------------------------------------------------

    def _value(self, text: str) -> None:
        if self._tail:
            text = self._tail + text
            self._tail = ""
        if self._pending_end:
            text = self._pending_end + text
            self._pending_end = ""
        if text[-1] in "\n</":
            cut = len(text) - (2 if text.endswith("</") else 1 if text[-1] == "<" else 0)
            if cut and text[cut - 1] == "\n":
                cut -= 1
            self._tail = text[cut:]
            text = text[:cut]
            if not text:
                return
        self._current().feed(text)

    def _feed_value(self, text: str) -> None:
        """Feed text that can no longer be part of a tag, and what was held back before it."""
        text = self._tail + self._pending_end + text
        self._tail = self._pending_end = ""
        if text:
            self._current().feed(text)

    def _end_value(self) -> None:
        self._current().end_parameter()
        self._enter(Place.INVOKE)

    def _value_marker(self) -> None:
        tail = self._tail
        if tail.endswith("</"):
            self._tail = tail[:-2]
            self._feed_value("")
            self._end_value()
            self._place = Place.VALUE
            self._start_tag(closes=True)
        elif not tail.endswith("<") or not self._repair:
            self._feed_value(tokens.DSML)
        elif self._is_token_level:
            self._end_unclosed_value()
            self._start_tag(closes=False)
        elif tail == "\n<":
            self._probe = ""
            self.text = self._probe_opener
        else:
            self._feed_value(tokens.DSML)

    def _end_unclosed_value(self) -> None:
        """An opener within a value: its closer is missing, and one newline belonged to the tag."""
        self._tail = ""
        self._current().count(RepairKind.PARAMETER_CLOSER)
        self._end_value()

    def _probe_opener(self, text: str) -> None:
        """Text level only: does a parameter's opener follow, or text about one?"""
        self._probe += text
        if any(self._probe.startswith(opener) for opener in _PARAMETER_OPENERS):
            probed, self._probe = self._probe, ""
            self._end_unclosed_value()
            self._start_tag(closes=False)
            self.text(probed)
        elif not any(opener.startswith(self._probe) for opener in _PARAMETER_OPENERS):
            self._end_probe()

    def _end_probe(self) -> None:
        """It was text; hand it to the value, the marker itself included."""
        probed, self._probe = self._probe, ""
        self.text = self._value
        self._feed_value(tokens.DSML)
        if probed:
            self._value(probed)

    # --- tags ----------------------------------------------------------------------------------

    def _start_tag(self, *, closes: bool) -> None:
        self._tag = []
        self._tag_is_quoted = False
        self._tag_closes = closes
        self._tail = ""
        self.text = self._tag_text

    def _tag_text(self, text: str) -> None:
        position = 0
        while True:
            if self._tag_is_quoted:
                position = text.find('"', position) + 1
                if not position:
                    break
                self._tag_is_quoted = False
            found = _QUOTE_OR_END.search(text, position)
            if found is None:
                break
            if found.group() == ">":
                self._tag.append(text[: found.start()])
                self._finish_tag(read_tag("".join(self._tag)))
                if rest := text[found.end() :]:
                    self.text(rest)
                return
            self._tag_is_quoted = True
            position = found.end()
        self._tag.append(text)

    def _break_tag(self) -> str:
        """Another marker stands where ``>`` should; returns the ``<`` or ``</`` in front of it."""
        text = "".join(self._tag)
        stripped = text.removesuffix("/").removesuffix("<") if text.endswith("</") else text
        stripped = stripped.removesuffix("<")
        self._finish_tag(read_tag(stripped, is_ended=False))
        return text[len(stripped) :]

    def _finish_tag(self, tag: Tag) -> None:
        home = self._place
        self._enter(Place.INVOKE if home is Place.VALUE else home)
        if self._tag_closes:
            self._close(tag, home)
        else:
            self._open(tag, home)

    # --- opening tags --------------------------------------------------------------------------

    def _open(self, tag: Tag, home: Place) -> None:
        if tag.word == "invoke":
            if home is not Place.BLOCK and home is not Place.INVOKE:
                self.count(RepairKind.BARE_INVOKE)
            self._open_call(tag)
        elif tag.word == "parameter":
            self._open_parameter(tag, home)
        elif home is Place.INVOKE:
            self._current().count(RepairKind.STRAY_TAG)
        else:
            if tag.word not in BLOCK_NAMES or not tag.is_clean:
                self.count(RepairKind.BLOCK_NAME)
            self._enter(Place.BLOCK)

    def _open_call(self, tag: Tag) -> None:
        if self._call is not None:
            self._current().count(RepairKind.INVOKE_CLOSER)
            self._close_call()
        index, name = self._num_calls, tag.name or ""
        self._num_calls += 1
        self._call = CallBuilder(
            self._mint(index, not self.reasoning),
            name,
            self._tools.get(name),
            repair=self._repair,
            emit=self._emitter(index),
            count=self.count,
        )
        if self._reports_calls:
            self.events.append(CallStart(index, self._call.id, name))
        if not tag.is_clean:
            self._call.count(RepairKind.TAG)
        self._enter(Place.INVOKE)
        if tag.closes_itself:
            self._call.count(RepairKind.SELF_CLOSING)
            self._close_call()

    def _emitter(self, index: int) -> Callable[[str], None]:
        if not self._reports_calls:
            return self._ignore

        def emit(text: str) -> None:
            self.events.append(ArgumentsDelta(index, text))

        return emit

    def _open_parameter(self, tag: Tag, home: Place) -> None:
        if home is not Place.INVOKE:
            self.count(RepairKind.STRAY_TAG)
            self._enter(Place.BLOCK)
            return
        call = self._current()
        if not tag.is_clean:
            call.count(RepairKind.TAG)
        call.start_parameter(tag.name or "", tag.is_string)
        if tag.closes_itself:
            call.count(RepairKind.SELF_CLOSING)
            self._end_value()
        else:
            self._enter(Place.VALUE)

    # --- closing tags --------------------------------------------------------------------------

    def _close(self, tag: Tag, home: Place) -> None:
        if home is Place.VALUE:
            self._close_value(tag)
        elif home is Place.INVOKE:
            self._close_invoke(tag)
        elif home is Place.BLOCK and tag.word not in ("invoke", "parameter"):
            if tag.word not in BLOCK_NAMES:
                self.count(RepairKind.BLOCK_NAME)
            self._enter(Place.AFTER if self._reports_calls else Place.CONTENT)
        else:
            self.count(RepairKind.STRAY_TAG)

    def _close_value(self, tag: Tag) -> None:
        """The value has ended at its marker; the word says what else has."""
        if tag.word != "parameter":
            self._current().count(RepairKind.PARAMETER_CLOSER)
            if tag.word == "invoke" or tag.names_block:
                self._close_invoke(tag)

    def _close_invoke(self, tag: Tag) -> None:
        call = self._current()
        if tag.word == "parameter":
            call.count(RepairKind.STRAY_TAG)
            return
        if tag.word != "invoke":
            call.count(RepairKind.INVOKE_CLOSER)
        self._close_call()
        if tag.names_block:
            self._enter(Place.AFTER if self._reports_calls else Place.CONTENT)

    def _close_call(self) -> None:
        call = self._current()
        finished = call.close()
        self._call = None
        if self._reports_calls:
            self.calls.append(finished)
            self.events.append(CallEnd(self._num_calls - 1, finished.status))
        else:
            self.count(RepairKind.SUPPRESSED_CALL)
        self._enter(Place.BLOCK)

    # --- markers -------------------------------------------------------------------------------

    def dsml(self) -> None:
        """The DSML token."""
        if self.text == self._probe_opener:
            self._end_probe()
        if self.text == self._tag_text:
            self._resume(self._break_tag())
        elif self._place is Place.VALUE:
            self._value_marker()
        elif self._place in (Place.REASONING, Place.CONTENT):
            self._text_marker()
        elif self._place is not Place.ENDED:
            self._resume(self._tail)

    def _resume(self, before: str) -> None:
        """Begin the tag that the text in front of a marker announces."""
        if self._place is Place.VALUE or self._place in (Place.REASONING, Place.CONTENT):
            self._tail = before
            self.dsml()
        elif before:
            self._start_tag(closes=before == "</")
        else:
            self.count(RepairKind.STRAY_TOKEN)

    def _text_marker(self) -> None:
        tail, self._tail = self._tail, ""
        if not tail:
            self._flush_text()
            self.count(RepairKind.STRAY_TOKEN)
        elif tail == "</":
            self._start_tag(closes=True)
        else:
            self._newlines = 0
            if self._place is Place.REASONING:
                self.count(RepairKind.CALL_IN_REASONING)
                self._start_content()
            self._start_tag(closes=False)

    def think_close(self) -> None:
        """The end of the reasoning."""
        if self._place is Place.REASONING and self.text == self._text:
            if self._tail:
                self._flush_text()
            self._start_content()
        else:
            self.control(tokens.THINK_CLOSE)

    def control(self, spelling: str) -> None:
        """A control token that means nothing here: verbatim in a value, dropped elsewhere."""
        if self.text == self._probe_opener:
            self._end_probe()
        if self.text == self._value:
            self._feed_value(spelling)
        elif self._place is not Place.ENDED:
            if self.text == self._text:
                self._flush_text()
            if spelling != tokens.THINK_OPEN or self.reasoning or self.content:
                self.count(RepairKind.STRAY_TOKEN)

    def end_of_sentence(self) -> None:
        """The EOS token: the end, or at text level perhaps only text about it."""
        if self._is_token_level:
            self._settle()
            self._enter(Place.ENDED)
            return
        if self.text == self._probe_opener:
            self._end_probe()
        if self.text == self._value:
            tail, self._tail = self._tail, ""
            self._pending_end += tail + tokens.EOS
        elif self.text == self._text:
            self._flush_text()

    # --- the end -------------------------------------------------------------------------------

    def last_text(self, text: str) -> None:
        """The last text of a turn, held back because it may have begun a marker.

        In prose it is text. Within a call, which is cut off here, it is taken for half a tag.
        """
        if self.text == self._text:
            self.text(text)

    def finish(self, reason: str) -> Turn:
        """The turn as read, given why the engine stopped."""
        if self._place is not Place.ENDED:
            self._settle()
        if self.is_cut:
            reason = "length"
        elif reason == "stop" and self.calls:
            reason = "tool_calls"
        return Turn(
            reasoning="".join(self.reasoning),
            content="".join(self.content),
            tool_calls=self.calls,
            incomplete_calls=self.incomplete,
            finish_reason=reason,
            repairs=self.repairs,
        )

    def _settle(self) -> None:
        """No more text comes: prose keeps what was held back for tags, a call is cut off."""
        if self.text == self._text:
            self._flush_text()
        elif self.text == self._tag_text and self._reports_calls:
            self.is_cut = True
        if self._call is not None:
            if self._reports_calls:
                self.is_cut = True
                self.incomplete.append(self._call.abandon())
            self._call = None

    def count(self, kind: RepairKind) -> None:
        """Count a repair."""
        self.repairs[kind] = self.repairs.get(kind, 0) + 1

    def _current(self) -> CallBuilder:
        if self._call is None:
            raise AssertionError("text of a call without a call")
        return self._call
