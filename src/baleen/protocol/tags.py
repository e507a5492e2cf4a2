"""What stands between a DSML token and the ``>`` behind it.

``tool_calls``, ``/invoke`` without its slash, ``parameter name="k" string="true"``. Both dialects
and the names of older ones are read alike; attributes may come in any order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from baleen.protocol.prose import bracket_at_end

BLOCK_NAMES: Final = frozenset({"tool_calls", "calls"})
"""Block names of V4 and V4.1."""

_OTHER_BLOCK_NAMES: Final = frozenset({"toolcalls", "tool_call", "function_calls", "function_call"})
_BAR: Final = "｜"
"""One too many behind the DSML token is known to happen."""
_WORD: Final = re.compile(r'[^\s"/>=]*')
_ATTRIBUTE: Final = re.compile(r'([A-Za-z_]+)\s*=\s*"([^"]*)("?)')
_QUOTE_OR_END: Final = re.compile('[">]')
_BOOLEANS: Final = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag, read: its first word, its attributes, and how well formed it was."""

    word: str
    name: str | None = None
    is_string: bool | None = None
    closes_itself: bool = False
    is_clean: bool = True

    @property
    def names_block(self) -> bool:
        """Whether the word is that of a block in some dialect."""
        return self.word in BLOCK_NAMES or self.word in _OTHER_BLOCK_NAMES


def read_tag(text: str, *, is_ended: bool = True) -> Tag:
    """Read a tag's inside; ``is_ended`` False means that its ``>`` is missing."""
    inside = text.strip()
    text = inside.lstrip(_BAR)
    word = _WORD.match(text)
    first = word.group() if word is not None else ""
    name: str | None = None
    is_string: bool | None = None
    is_clean = is_ended and text == inside
    end = len(first)
    for attribute in _ATTRIBUTE.finditer(text, end):
        key, value, closing = attribute.groups()
        is_clean = is_clean and text[end : attribute.start()].isspace()
        end = attribute.end()
        is_clean = is_clean and bool(closing)
        if key == "name" and name is None:
            name = value if closing else value.split(">")[0]
            # A string attribute ahead of the name is read all the same, but is not the format.
            is_clean = is_clean and is_string is None
        elif key == "string" and is_string is None:
            is_string = _BOOLEANS.get(value.strip().lower())
            is_clean = is_clean and value in _BOOLEANS
    is_clean = is_clean and text[end:] in ("", "/")
    return Tag(first, name, is_string, text.endswith("/"), is_clean)


class TagText:
    """Collects a tag's inside up to the ``>`` that no quotes hide."""

    __slots__ = ("_is_quoted", "_pieces", "closes")

    def __init__(self, *, closes: bool) -> None:
        self.closes = closes
        self._pieces: list[str] = []
        self._is_quoted = False

    def feed(self, text: str) -> tuple[Tag, str] | None:
        """More text; returns the tag and the text behind it once it is complete."""
        position = 0
        while True:
            if self._is_quoted:
                position = text.find('"', position) + 1
                if not position:
                    break
                self._is_quoted = False
            found = _QUOTE_OR_END.search(text, position)
            if found is None:
                break
            position = found.end()
            if found.group() == ">":
                self._pieces.append(text[: position - 1])
                return read_tag("".join(self._pieces)), text[position:]
            self._is_quoted = True
        self._pieces.append(text)
        return None

    def break_off(self) -> tuple[Tag, str]:
        """Another marker stands where ``>`` should; returns the tag and the bracket before that."""
        text = "".join(self._pieces)
        bracket = bracket_at_end(text) if text else ""
        return read_tag(text[: len(text) - len(bracket)], is_ended=False), bracket
