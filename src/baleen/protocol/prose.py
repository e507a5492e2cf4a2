"""Text outside parameters: reasoning, content, and what stands between the tags of a block.

Newlines in front of a marker belong to the markup, and so does a ``<`` or ``</`` in front of the
DSML token. Both are held back until it is clear what follows.
"""

from __future__ import annotations

from collections.abc import Callable

from baleen.protocol.events import ContentDelta, Event, ReasoningDelta


def bracket_at_end(text: str) -> str:
    """The ``<`` or ``</`` that a text ends with, else an empty string."""
    if text[-1] == "<":
        return "<"
    return "</" if text.endswith("</") else ""


class Prose:
    """Reasoning or content, reported as it comes.

    ``drops_newlines`` leaves out the newlines at its very start.
    """

    __slots__ = ("_delta", "_events", "drops_newlines", "newlines", "pieces", "tail")

    def __init__(
        self,
        delta: type[ReasoningDelta] | type[ContentDelta],
        events: list[Event],
        *,
        drops_newlines: bool,
    ) -> None:
        self.pieces: list[str] = []
        self.tail = ""
        self.newlines = 0
        self.drops_newlines = drops_newlines
        self._delta = delta
        self._events = events

    def text(self, text: str) -> None:
        """More text; not empty."""
        if self.tail:
            text = self.tail + text
            self.tail = ""
        newlines = 0
        if text[-1] in "\n</":
            self.tail = bracket_at_end(text)
            body = text[: len(text) - len(self.tail)]
            text = body.rstrip("\n")
            newlines = len(body) - len(text)
        if text:
            if self.newlines or self.drops_newlines:
                text = self._with_newlines(text)
            self.pieces.append(text)
            self._events.append(self._delta(text))
            self.newlines = newlines
        else:
            self.newlines += newlines

    def _with_newlines(self, text: str) -> str:
        if self.drops_newlines:
            self.drops_newlines = False
            return text.lstrip("\n")
        return "\n" * self.newlines + text

    def flush(self) -> None:
        """Say what was held back for a marker that did not come."""
        text = ("" if self.drops_newlines else "\n" * self.newlines) + self.tail
        self.newlines, self.tail = 0, ""
        if text:
            self.drops_newlines = False
            self.pieces.append(text)
            self._events.append(self._delta(text))

    def take_tail(self) -> str:
        """The bracket in front of a marker; it is no text any more."""
        tail, self.tail = self.tail, ""
        return tail


class Gap:
    """Text between the tags of a block, where none belongs.

    ``note`` is called once per gap that holds more than space; ``body``, if given, takes the text.
    """

    __slots__ = ("_body", "_is_noted", "_note", "tail")

    def __init__(self, note: Callable[[], None], body: Callable[[str], None] | None = None) -> None:
        self.tail = ""
        self._note = note
        self._body = body
        self._is_noted = False

    def text(self, text: str) -> None:
        """More text; not empty."""
        text = self.tail + text
        self.tail = bracket_at_end(text)
        text = text[: len(text) - len(self.tail)]
        if self._body is not None:
            self._body(text)
        elif not self._is_noted and text and not text.isspace():
            self._is_noted = True
            self._note()

    def take_tail(self) -> str:
        """The bracket in front of a marker; it is no text any more."""
        tail, self.tail = self.tail, ""
        return tail
