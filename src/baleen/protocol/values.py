"""One parameter's raw text to one JSON value, by its attribute and its schema.

A string is taken byte for byte. Anything else must be JSON and keeps its spelling: ``1.10`` stays
``1.10``. Attribute and schema may contradict each other; then the value is converted only if the
result validates, and otherwise stays as it was sent. What cannot be read at all becomes a JSON
string of the raw text, so that arguments are valid JSON whatever a model writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

from baleen.protocol.jsontext import loads_rfc8259
from baleen.protocol.schema import Schema
from baleen.protocol.turn import RepairKind

quote: Final = json.encoder.encode_basestring
"""A string as JSON text, quotes included, non-ASCII characters as they are."""

_PYTHON_LITERALS: Final = {"True": "true", "False": "false", "None": "null"}


class Value(NamedTuple):
    """A value as JSON text, and what had to be done for it."""

    lexeme: str
    repair: RepairKind | None = None


def read_value(raw: str, is_string: bool | None, schema: Schema | None, *, repair: bool) -> Value:
    """The value of a parameter; ``is_string`` None means that the tag did not say.

    ``repair`` allows conversions that the schema demands.
    """
    if not repair:
        schema = None
    if is_string is None:
        return _untyped(raw, schema, repair=repair)
    return _from_string(raw, schema) if is_string else _from_json(raw, schema)


def _from_string(raw: str, schema: Schema | None) -> Value:
    if schema is not None and not schema.admits_strings():
        for lexeme, kind in _as_json(raw):
            if _validates(lexeme, schema):
                return Value(lexeme, kind or RepairKind.STRING_TO_JSON)
    return Value(quote(raw))


def _from_json(raw: str, schema: Schema | None) -> Value:
    try:
        value = loads_rfc8259(raw)
    except ValueError:
        return _not_json(raw, schema)
    if schema is None or schema.validates(value):
        return Value(raw)
    if isinstance(value, str):
        inner = _from_string(value, schema)
        return inner if inner.repair is not None else Value(raw)
    if schema.admits_strings() and schema.validates(raw):
        return Value(quote(raw), RepairKind.JSON_TO_STRING)
    return Value(raw)


def _not_json(raw: str, schema: Schema | None) -> Value:
    if schema is not None:
        for lexeme, kind in _as_json(raw):
            if kind is not None and _validates(lexeme, schema):
                return Value(lexeme, kind)
        if schema.admits_strings() and schema.validates(raw):
            return Value(quote(raw), RepairKind.JSON_TO_STRING)
    return Value(quote(raw), RepairKind.INVALID_JSON)


def _untyped(raw: str, schema: Schema | None, *, repair: bool) -> Value:
    if not repair:
        return Value(quote(raw), RepairKind.INVALID_JSON)
    value = _from_string(raw, schema)
    is_read = value.repair is not None or schema is None or schema.admits_strings()
    return Value(value.lexeme, RepairKind.MISSING_ATTRIBUTE if is_read else RepairKind.INVALID_JSON)


def _as_json(raw: str) -> Iterator[tuple[str, RepairKind | None]]:
    """Readings of a text as JSON, the plain one first."""
    text = raw.strip()
    yield text, None
    if text in _PYTHON_LITERALS:
        yield _PYTHON_LITERALS[text], RepairKind.LITERAL


def _validates(lexeme: str, schema: Schema) -> bool:
    try:
        return schema.validates(loads_rfc8259(lexeme))
    except ValueError:
        return False
