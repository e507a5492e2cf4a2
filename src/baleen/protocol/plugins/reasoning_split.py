"""Cuts an output where its reasoning ends, and leaves the rest to a parser behind it."""

from __future__ import annotations

from typing import Final, NamedTuple

from baleen.protocol import tokens
from baleen.protocol.lexer import Spellings

_CALL: Final = f"<{tokens.DSML}"
_ENDS: Final = Spellings((tokens.THINK_CLOSE, _CALL))


class Split(NamedTuple):
    """A piece of reasoning, and a piece of what follows it."""

    reasoning: str
    rest: str


class ReasoningSplit:
    """Streams; a call that opens within the reasoning ends it too."""

    def __init__(self) -> None:
        self._held = ""
        self.has_ended = False

    def feed(self, text: str) -> Split:
        """More output; cut anywhere. Newlines around the closing tag belong to neither part."""
        if self.has_ended:
            return Split("", text)
        text = self._held + text
        end = _ENDS.find(text)
        if end is None or end.group() not in _ENDS:
            reasoning = text if end is None else text[: end.start()]
            cut = len(reasoning.rstrip("\n"))
            self._held = text[cut:]
            return Split(text[:cut], "")
        self.has_ended = True
        self._held = ""
        rest = text[end.start() :] if end.group() == _CALL else text[end.end() :]
        return Split(text[: end.start()].rstrip("\n"), rest)

    def finish(self) -> Split:
        """No more output."""
        held, self._held = self._held, ""
        return Split(held, "")
