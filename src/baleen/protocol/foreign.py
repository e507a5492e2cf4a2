"""Calls that are written as one JSON object instead of markup."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from baleen.protocol.jsontext import loads_rfc8259, read_value_at

_SPACE: Final = re.compile(r"[ \t\n\r]*")


class JsonCall(NamedTuple):
    """A name, and the text of an object as it was written."""

    name: str
    arguments: str


def read_json_call(text: str) -> JsonCall | None:
    """Read ``{"name": ..., "arguments": {...}}``; None if the text is anything else."""
    try:
        value = loads_rfc8259(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    for key in ("arguments", "parameters"):
        arguments = value.get(key)
        if isinstance(arguments, dict):
            return JsonCall(value["name"], member_text(text, key))
    return None


class JsonCallText:
    """Collects what stands between the opening and the closing element."""

    __slots__ = ("_opener", "_pieces")

    def __init__(self, opener: str) -> None:
        self._opener = opener
        self._pieces: list[str] = []

    def feed(self, text: str) -> None:
        """More text."""
        self._pieces.append(text)

    @property
    def whole(self) -> str:
        """Everything so far, the opening element included."""
        return self._opener + "".join(self._pieces)

    def read(self) -> JsonCall | None:
        """The call, if there is one."""
        return read_json_call("".join(self._pieces))


def member_text(text: str, key: str) -> str:
    """The text of an object's member as it stands; the text is known to be an object with it."""
    position = _after_space(text, text.index("{") + 1)
    found = ""
    while text[position] != "}":
        name, position = read_value_at(text, position)
        start = _after_space(text, _after_space(text, position) + 1)
        _, position = read_value_at(text, start)
        if name == key:
            found = text[start:position]
        position = _after_space(text, position)
        if text[position] == ",":
            position = _after_space(text, position + 1)
    return found


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match is not None else position
