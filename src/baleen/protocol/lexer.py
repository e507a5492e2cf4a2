"""Text level: which parts of a text stream are markers.

Where an engine hands out text only, a marker and text that spells it look the same, so every
spelling counts as the marker. A tail that may be the beginning of one is held back, at most 18
characters.
"""

from __future__ import annotations

import re
from typing import Final

from baleen.protocol import tokens
from baleen.protocol.machine import Machine

_SPELLINGS: Final = (tokens.DSML, tokens.THINK_CLOSE, tokens.THINK_OPEN, tokens.EOS)
_MARKERS: Final = re.compile("|".join(map(re.escape, _SPELLINGS)))
_BEGINNINGS: Final = frozenset(
    spelling[:length] for spelling in _SPELLINGS for length in range(1, len(spelling))
)
_LONGEST: Final = max(map(len, _BEGINNINGS))
_FIRST: Final = re.compile("[<｜]")


class TextLexer:
    """Feeds a machine from text."""

    __slots__ = ("_held", "_machine")

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._held = ""

    def feed(self, text: str) -> None:
        """More output; cut anywhere."""
        if self._held:
            text = self._held + text
            self._held = ""
        elif "<" not in text and "｜" not in text:
            if text:
                self._machine.text(text)
            return
        position = 0
        for marker in _MARKERS.finditer(text):
            if marker.start() > position:
                self._machine.text(text[position : marker.start()])
            dispatch(self._machine, marker.group())
            position = marker.end()
        cut = _held_from(text, position)
        self._held = text[cut:]
        if cut > position:
            self._machine.text(text[position:cut])

    def finish(self) -> None:
        """No more output: what was held back is text after all."""
        held, self._held = self._held, ""
        if held:
            self._machine.last_text(held)


def dispatch(machine: Machine, marker: str) -> None:
    """Tell a machine about a marker."""
    if marker == tokens.DSML:
        machine.dsml()
    elif marker == tokens.THINK_CLOSE:
        machine.think_close()
    elif marker == tokens.EOS:
        machine.end_of_sentence()
    else:
        machine.control(marker)


def _held_from(text: str, position: int) -> int:
    """Where the longest tail starts that may be the beginning of a marker."""
    start = max(position, len(text) - _LONGEST)
    while found := _FIRST.search(text, start):
        start = found.start()
        if text[start:] in _BEGINNINGS:
            return start
        start += 1
    return len(text)
