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

from typing import Any

from baleen.protocol import tokens
from baleen.protocol.foreign import JsonCallText
from baleen.protocol.place import Place
from baleen.protocol.prose import Prose
from baleen.protocol.tag_actions import close_tag, open_tag
from baleen.protocol.tags import Tag, TagText
from baleen.protocol.turn import RepairKind
from baleen.protocol.turn_state import TurnState


class Machine(TurnState):
    """Moves a turn's state on, marker by marker.

    ``is_token_level`` says that markers are certain; the other options are those of the state.
    """

    def __init__(self, *, is_token_level: bool, **options: Any) -> None:
        super().__init__(**options)
        self._is_token_level = is_token_level
        self._is_probing = False

    # --- tags ----------------------------------------------------------------------------------

    def _start_tag(self, *, closes: bool) -> None:
        self.tag = TagText(closes=closes)
        self.text = self._tag_text

    def _tag_text(self, text: str) -> None:
        if self.tag is not None and (read := self.tag.feed(text)) is not None:
            tag, rest = read
            self._finish_tag(self.tag, tag)
            if rest:
                self.text(rest)

    def _finish_tag(self, collected: TagText, tag: Tag) -> None:
        home = self.place
        self.enter(Place.INVOKE if home is Place.VALUE else home)
        if collected.closes:
            close_tag(self, tag, home)
        else:
            open_tag(self, tag, home)

    # --- the DSML token ------------------------------------------------------------------------

    def dsml(self) -> None:
        """The DSML token; what it begins depends on the bracket in front of it."""
        self._end_guesses()
        if self.tag is not None:
            tag, bracket = self.tag.break_off()
            self._finish_tag(self.tag, tag)
            if bracket:
                self.text(bracket)
        if self.place is Place.VALUE:
            self._dsml_in_value()
        elif (prose := self.prose) is not None:
            self._dsml_in_prose(prose)
        elif self.place is not Place.ENDED:
            self._start_tag_or_skip(self.gap.take_tail())

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
            if prose is self.reasoning:
                self.count(RepairKind.CALL_IN_REASONING)
                self.start_content()
        self._start_tag_or_skip(bracket)

    def _dsml_in_value(self) -> None:
        value = self.current_value()
        bracket = value.take_bracket()
        if bracket == "</":
            value.put("")
            self.end_value()
            self.place = Place.VALUE
            self._start_tag(closes=True)
        elif bracket == "<" and self.repairs_values and self._is_token_level:
            self._end_unclosed_value()
        elif bracket == "<" and self.repairs_values and value.tail:
            self._is_probing = True
            self.text = self._probe
        else:
            value.put(bracket + tokens.DSML)

    def _end_unclosed_value(self) -> None:
        """An opener within a value: its closer is missing, and one newline belonged to the tag."""
        self.calls.current.count(RepairKind.PARAMETER_CLOSER)
        self.end_value()
        self._start_tag(closes=False)

    def _probe(self, text: str) -> None:
        """Text level only: does a parameter's opener follow, or text about one?"""
        opener = self.current_value().probe(text)
        if opener is None:
            self._is_probing = False
            self.text = self.current_value().text
        elif opener:
            self._is_probing = False
            self._end_unclosed_value()
            self.text(opener)

    # --- other markers -------------------------------------------------------------------------

    def think_close(self) -> None:
        """The end of the reasoning."""
        self._end_guesses()
        if self.prose is self.reasoning:
            if self.reasoning.tail:
                self.reasoning.flush()
            self.start_content()
        else:
            self.control(tokens.THINK_CLOSE)

    def control(self, spelling: str) -> None:
        """A control token that means nothing here: verbatim in a value, dropped elsewhere."""
        self._end_guesses()
        if self.place is Place.VALUE and self.tag is None:
            self.current_value().put(spelling)
        elif self.place is not Place.ENDED:
            if (prose := self.prose) is not None:
                prose.flush()
            begins = not (self.reasoning.pieces or self.content.pieces)
            if spelling != tokens.THINK_OPEN or not begins:
                self.count(RepairKind.STRAY_TOKEN)

    def end_of_sentence(self) -> None:
        """The EOS token: the end, or at text level perhaps only text about it."""
        self._end_guesses()
        if self.place is Place.ENDED:
            return
        if self._is_token_level:
            self.settle()
            self.enter(Place.ENDED)
        elif self.place is Place.VALUE and self.tag is None:
            self.current_value().hold_end_of_sentence()
        elif (prose := self.prose) is not None:
            prose.flush()

    def _end_guesses(self) -> None:
        """Another marker decides what was waiting for more text: it was text."""
        if self._is_probing:
            self._is_probing = False
            value = self.current_value()
            value.end_probe()
            self.text = value.text
        elif self.json_call is not None:
            self.give_up_json_call(self.json_call)

    # --- foreign markup ------------------------------------------------------------------------

    def foreign_dsml(self, spelling: str, bracket: str, *, is_certain: bool = False) -> None:
        """A tag's beginning in another spelling.

        Within a block of the right one it is only text, unless ``is_certain``: the token itself
        stands in it.
        """
        self._end_guesses()
        if self.place in (Place.REASONING, Place.CONTENT, Place.AFTER):
            self.block_is_foreign = True
        if self.block_is_foreign or is_certain:
            self.text(bracket)
            self.dsml()
        else:
            self.text(spelling)

    def foreign_call(self, spelling: str, *, opens: bool) -> None:
        """An element around a call written as one JSON object."""
        if opens:
            self._end_guesses()
        collected = self.json_call
        if collected is not None:
            self._finish_json_call(collected, spelling)
        elif opens and self.tag is None and self.place not in (Place.VALUE, Place.INVOKE):
            self.json_call = JsonCallText(spelling)
            self.text = self.json_call.feed
        else:
            self.text(spelling)

    def _finish_json_call(self, collected: JsonCallText, closer: str) -> None:
        call = collected.read()
        if call is None:
            self.give_up_json_call(collected)
            self.text(closer)
            return
        self.json_call = None
        if (prose := self.prose) is not None:
            if prose.tail:
                prose.flush()
            prose.newlines = 0
            if prose is self.reasoning:
                self.count(RepairKind.CALL_IN_REASONING)
        builder = self.calls.open(call.name, without_reasoning=not self.reasoning.pieces)
        builder.count(RepairKind.FOREIGN_MARKUP)
        builder.take_whole(call.arguments)
        self.close_call()
        self.leave_block()

    # --- the end -------------------------------------------------------------------------------

    def last_text(self, text: str) -> None:
        """The last text of a turn, held back because it may have begun a marker.

        In prose it is text. Within a call, which is cut off here, it is taken for half a tag.
        """
        if self.prose is not None or self.json_call is not None:
            self.text(text)
