"""Text level: which parts of a text stream are markers.

Where an engine hands out text only, a marker and text that spells it look the same, so every
spelling counts as the marker. A tail that may be the beginning of one is held back, at most 18
characters. The token's name between doubled bars is no marker but a known mistake of models and
clients: text, unless recovery of foreign markup is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from baleen.protocol import tokens
from baleen.protocol.machine import Machine

_DOUBLED: Final = "｜｜DSML｜｜"
_TEXT_MARKERS: Final = (tokens.DSML, tokens.THINK_CLOSE, tokens.THINK_OPEN, tokens.EOS)
_FOREIGN_TAGS: Final = ("|DSML|", "‖DSML‖", _DOUBLED)
_FOREIGN_CALL: Final = ("<tool_call>", "</tool_call>")
_FIRST: Final = re.compile("[<｜]")


class Spellings:
    """A set of spellings to look for, and everything that may turn into one of them."""

    def __init__(self, spellings: Iterable[str]) -> None:
        longest_first = sorted(spellings, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._beginnings = frozenset(s[:n] for s in longest_first for n in range(1, len(s)))
        self._longest = max(map(len, self._beginnings))
        self.find = self._pattern.search

    def held_from(self, text: str, position: int) -> int:
        """Where the longest tail starts that may be the beginning of a spelling."""
        start = max(position, len(text) - self._longest)
        while found := _FIRST.search(text, start):
            start = found.start()
            if text[start:] in self._beginnings:
                return start
            start += 1
        return len(text)


_FOREIGN: Final = (
    *(f"{bracket}{name}" for bracket in ("<", "</") for name in _FOREIGN_TAGS),
    *_FOREIGN_CALL,
)
_PLAIN_SPELLINGS: Final = Spellings((*_TEXT_MARKERS, _DOUBLED))
_ALL_SPELLINGS: Final = Spellings((*_TEXT_MARKERS, _DOUBLED, *_FOREIGN))
_FOREIGN_SPELLINGS: Final = Spellings(_FOREIGN)


class TextLexer:
    """Feeds a machine from text.

    ``foreign`` recovers other spellings of the markup. ``certain`` says that the text has passed a
    token lexer, so that it holds no markers of its own.
    """

    __slots__ = ("_held", "_machine", "_spellings")

    def __init__(self, machine: Machine, *, foreign: bool, certain: bool = False) -> None:
        self._machine = machine
        self._held = ""
        self._spellings = (
            _FOREIGN_SPELLINGS if certain else _ALL_SPELLINGS if foreign else _PLAIN_SPELLINGS
        )

    def feed(self, text: str) -> None:
        """More output; cut anywhere."""
        if self._held:
            text = self._held + text
            self._held = ""
        elif "<" not in text and "｜" not in text:
            if text:
                self._machine.text(text)
            return
        self._feed_marked(text)

    def _feed_marked(self, text: str) -> None:
        spellings, machine = self._spellings, self._machine
        position = 0
        while True:
            marker = spellings.find(text, position)
            cut = spellings.held_from(text, position)
            end = cut if marker is None else min(cut, marker.start())
            if end > position:
                machine.text(text[position:end])
            if marker is None or cut < marker.start():
                self._held = text[cut:]
                return
            dispatch(machine, marker.group())
            position = marker.end()

    def flush(self) -> None:
        """A marker came by another way: what was held back is text."""
        held, self._held = self._held, ""
        if held:
            self._machine.text(held)

    def finish(self) -> None:
        """No more output: what was held back is text, or half a tag."""
        held, self._held = self._held, ""
        if held:
            self._machine.last_text(held)


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
