"""Prompts as segments: text and special tokens kept apart until ids are needed.

A prompt is a sequence of ``(text, is_special)`` pairs. Each special token stands alone, and two
plain segments never touch, so that a tokenizer sees the longest run of ordinary text at once. Only
this module's writer makes special segments; text from messages, tools and schemas goes in as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

from baleen.protocol import tokens

Segment = tuple[str, bool]


class Sampled(NamedTuple):
    """A run of segments whose ids are known, because a model has sampled them."""

    start: int
    end: int
    ids: Sequence[int]


_IN_TEMPLATES: Final = re.compile(
    "|".join(map(re.escape, (tokens.DSML, tokens.THINK_OPEN, tokens.THINK_CLOSE)))
)


@cache
def split_template(template: str) -> tuple[Segment, ...]:
    """Segments of a text of our own in which special tokens are spelled out."""
    pieces: list[Segment] = []
    position = 0
    for match in _IN_TEMPLATES.finditer(template):
        if match.start() > position:
            pieces.append((template[position : match.start()], False))
        pieces.append((match.group(), True))
        position = match.end()
    if position < len(template):
        pieces.append((template[position:], False))
    return tuple(pieces)


class _Specials(dict[str, Segment]):
    """One segment per special token: prompts hold very many of them."""

    def __missing__(self, token: str) -> Segment:
        self[token] = segment = (token, True)
        return segment


SPECIALS: Final = _Specials()


class SegmentWriter:
    """Collects segments; adjacent text becomes one segment."""

    __slots__ = ("_segments", "_text", "marks", "sampled")

    def __init__(self) -> None:
        self.marks: list[tuple[int, int, str]] = []
        self.sampled: list[Sampled] = []
        self._segments: list[Segment] = []
        self._text = ""

    def mark(self, index: int, kind: str) -> None:
        """Note that a message starts with the next segment."""
        self.marks.append((len(self._segments) + bool(self._text), index, kind))

    def text(self, text: str) -> None:
        """Append ordinary text, whatever it spells."""
        self._text += text

    def special(self, token: str) -> None:
        """Append one special token."""
        if self._text:
            self._segments.append((self._text, False))
            self._text = ""
        self._segments.append(SPECIALS[token])

    def extend(self, segments: list[Segment]) -> None:
        """Append segments of which the first is text and no two texts touch."""
        if self._text:
            segments[0] = (self._text + segments[0][0], False)
            self._text = ""
        self._segments += segments

    def template(self, template: str) -> None:
        """Append a text of our own in which special tokens are spelled out."""
        for text, is_special in split_template(template):
            if is_special:
                self.special(text)
            else:
                self._text += text

    def replay(self, segments: Sequence[Segment], ids: Sequence[int]) -> None:
        """Append what was sampled, with its ids; it begins behind a special token."""
        if self._text:
            raise AssertionError("sampled tokens begin behind a special token")
        start = len(self._segments)
        self._segments.extend(segments)
        self.sampled.append(Sampled(start, len(self._segments), ids))

    def finish(self) -> list[Segment]:
        """The segments so far; the writer can go on."""
        if self._text:
            self._segments.append((self._text, False))
            self._text = ""
        return self._segments
