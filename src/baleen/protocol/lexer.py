"""Text level: which parts of a text stream are markers.

Where an engine hands out text only, a marker and text that spells it look the same, so every
spelling counts as the marker. A tail that may be the beginning of one is held back, at most 18
characters. Within a parameter only spellings with a bar count, so brackets cost nothing here. The
token's name between doubled bars is no marker but a known mistake of models and clients: text,
unless recovery of foreign markup is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from baleen.protocol import tokens
from baleen.protocol.machine import Machine

_BAR: Final = "｜"
_DOUBLED: Final = "｜｜DSML｜｜"
_TEXT_MARKERS: Final = (tokens.DSML, tokens.THINK_CLOSE, tokens.THINK_OPEN, tokens.EOS)
_FOREIGN_TAGS: Final = ("|DSML|", "‖DSML‖", _DOUBLED)
_FOREIGN_CALL: Final = ("<tool_call>", "</tool_call>")


class Spellings:
    """A set of spellings to look for; none of them is the beginning of another."""

    def __init__(self, spellings: Iterable[str]) -> None:
        self._whole = frozenset(spellings)
        self.find = re.compile(_branches("", self._whole)).search
        """Finds the first spelling, or what may become one at the very end of a text."""

    def __contains__(self, text: str) -> bool:
        return text in self._whole


def _branches(beginning: str, spellings: Collection[str]) -> str:
    """A pattern for what may follow a beginning.

    It branches character by character, so that a bracket costs no more than one look behind it.
    """
    if beginning in spellings:
        return ""
    following = sorted({s[len(beginning)] for s in spellings if s.startswith(beginning)})
    branches = [re.escape(char) + _branches(beginning + char, spellings) for char in following]
    if beginning:
        branches.append(r"\Z")
    return f"(?:{'|'.join(branches)})"


_FOREIGN: Final = (
    *(f"{bracket}{name}" for bracket in ("<", "</") for name in _FOREIGN_TAGS),
    *_FOREIGN_CALL,
)
_DOUBLED_BRACKETS: Final = ("<｜", "</｜")
_PLAIN_SPELLINGS: Final = Spellings((*_TEXT_MARKERS, _DOUBLED))
_ALL_SPELLINGS: Final = Spellings((*_TEXT_MARKERS, _DOUBLED, *_FOREIGN))
_FOREIGN_SPELLINGS: Final = Spellings(_FOREIGN)


class TextLexer:
    """Feeds a machine from text.

    ``foreign`` recovers other spellings of the markup. ``certain`` says that the text has passed a
    token lexer, so that it holds no markers of its own.
    """

    __slots__ = ("_find", "_held", "_is_plain", "_machine", "_spellings")

    def __init__(self, machine: Machine, *, foreign: bool, certain: bool = False) -> None:
        self._machine = machine
        self._held = ""
        self._is_plain = not foreign
        self._spellings = (
            _FOREIGN_SPELLINGS if certain else _ALL_SPELLINGS if foreign else _PLAIN_SPELLINGS
        )
        self._find = self._spellings.find

    def feed(self, text: str) -> None:
        """More output; cut anywhere."""
        machine = self._machine
        if self._held:
            text = self._held + text
            self._held = ""
        elif _BAR not in text:
            if (machine.in_value and self._is_plain) or "<" not in text:
                if text:
                    machine.text(text)
                return
        elif machine.in_value and text[0] == _BAR:
            # The value has the bracket that may belong to it.
            text = machine.current_value().take_bracket() + text
        found = self._find(text)
        if found is None:
            machine.text(text)
        elif (start := found.start()) == len(text) - 1:
            # One character is never a whole marker: by far the most frequent thing to hold back.
            self._held = text[start]
            if start:
                machine.text(text[:start])
        else:
            self._feed_marked(text, found)

    def _feed_marked(self, text: str, found: re.Match[str] | None) -> None:
        machine, spellings = self._machine, self._spellings
        position = 0
        while found is not None:
            start, end = found.span()
            if start > position:
                machine.text(text[position:start])
            spelling = text[start:end]
            if spelling not in spellings:
                self._held = spelling
                return
            dispatch(machine, spelling)
            position = end
            found = self._find(text, position)
        if position < len(text):
            machine.text(text[position:])

    def take_doubled_bracket(self) -> str:
        """The bracket of a tag with one bar too many in front of a DSML token that comes now."""
        if self._held not in _DOUBLED_BRACKETS:
            return ""
        bracket, self._held = self._held[:-1], ""
        return bracket

    def flush(self) -> None:
        """A marker came by another way: what was held back is text."""
        held, self._held = self._held, ""
        if held:
            self._machine.text(held)

    def finish(self) -> None:
        """No more output: what was held back is text, or half a tag."""
        held, self._held = self._held, ""
        if held.startswith("<") and self._machine.in_value:
            # A reasoning tag is text here. Of half a tag, the value sees the bracket in any case.
            self._machine.text(held if _begins_think(held) else "<")
        elif held:
            self._machine.last_text(held)


def _begins_think(text: str) -> bool:
    return tokens.THINK_CLOSE.startswith(text) or tokens.THINK_OPEN.startswith(text)


def dispatch(machine: Machine, marker: str) -> None:
    """Tell a machine about a marker, by its spelling."""
    if marker == tokens.DSML:
        machine.dsml()
    elif marker == tokens.THINK_CLOSE:
        machine.think_close()
    elif marker == tokens.EOS:
        machine.end_of_sentence()
    elif marker == _DOUBLED:
        machine.text(marker)
    elif marker in _FOREIGN_CALL:
        machine.foreign_call(marker, opens=marker == _FOREIGN_CALL[0])
    elif marker in _FOREIGN:
        machine.foreign_dsml(marker, "</" if marker[1] == "/" else "<")
    else:
        machine.control(marker)
