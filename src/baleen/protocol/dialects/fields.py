"""Small readers that the dialects share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from baleen.protocol.errors import MessageError

Body = dict[str, Any]


def renamed(body: Mapping[str, Any], names: Mapping[str, str]) -> Body:
    """The fields of a body that another dialect has under another name."""
    return {new: body[old] for old, new in names.items() if body.get(old) is not None}


def objects(values: Any, where: str) -> list[Mapping[str, Any]]:
    """A list of JSON objects.

    Raises:
        MessageError: it is something else.
    """
    if not isinstance(values, list):
        raise MessageError("must be a list", field=where)
    for place, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise MessageError("must be an object", field=f"{where}[{place}]")
    return values


def string(value: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be a string.

    Raises:
        MessageError: it is missing or something else.
    """
    found = value.get(name)
    if not isinstance(found, str):
        raise MessageError(f"missing field `{name}`", field=where)
    return found


def text_parts(texts: Iterable[str]) -> list[Body]:
    """Texts as parts of a Chat Completions message."""
    return [{"type": "text", "text": text} for text in texts]


def plain_or_parts(parts: list[Body]) -> str | list[Body]:
    """A single text as a string, anything else as parts."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def parts_of(content: Any) -> list[Body]:
    """The parts of a Chat Completions content."""
    if content is None:
        return []
    return text_parts([content]) if isinstance(content, str) else list(content)
