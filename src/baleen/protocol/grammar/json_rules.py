"""JSON values of a schema, as grammar symbols.

Known to the grammar: types, enumerations, properties in any order with the required ones, items,
alternatives, references. Bounds on numbers and lengths are left to whoever validates the arguments.
An object with declared properties has no others unless its schema says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from baleen.protocol.grammar.automaton import LITERAL, MANY, ONE, Symbol
from baleen.protocol.schema import Schema

_DIGITS: Final = frozenset(b"0123456789")
_PLAIN: Final = frozenset(range(0x20, 0x100)) - frozenset(b'"\\')
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_SPACES: Final = frozenset(b" \n")
_MAX_SPACES: Final = 16
_KINDS: Final = ("object", "array", "string", "number", "boolean", "null")

PLAIN_TEXT: Final[Symbol] = (MANY, _PLAIN)
"""The inside of a JSON string, up to a quote or an escape."""


def literal(text: str) -> Symbol:
    """Exactly this text."""
    return (LITERAL, text.encode())


_FIXED: Final[dict[str, tuple[tuple[Symbol, ...], ...]]] = {
    "string": (((ONE, frozenset(b'"')), ("string rest",)),),
    "string rest": ((PLAIN_TEXT, ("string end",)),),
    "string end": ((literal('"'),), (literal("\\"), ("escape",), ("string rest",))),
    "escape": (
        ((ONE, frozenset(b'"\\/bfnrt')),),
        (literal("u"), (ONE, _HEX), (ONE, _HEX), (ONE, _HEX), (ONE, _HEX)),
    ),
    "sign": ((), (literal("-"),)),
    "integer": ((("sign",), ("digits",)),),
    "digits": ((literal("0"),), ((ONE, frozenset(b"123456789")), (MANY, _DIGITS))),
    "number": ((("integer",), ("fraction",), ("exponent",)),),
    "fraction": ((), (literal("."), (ONE, _DIGITS), (MANY, _DIGITS))),
    "exponent": (
        (),
        ((ONE, frozenset(b"eE")), ("exponent sign",), (ONE, _DIGITS), (MANY, _DIGITS)),
    ),
    "exponent sign": ((), ((ONE, frozenset(b"+-")),)),
    "boolean": ((literal("true"),), (literal("false"),)),
    "null": ((literal("null"),),),
}


class JsonRules:
    """Expands ``("value", n, strings)`` and what it consists of; ``n`` is a schema's number.

    ``strings`` False leaves out a bare string at the top.
    """

    def __init__(self) -> None:
        self._schemas: list[Schema] = []
        self._numbers: dict[int, int] = {}
        self._any = self._number(Schema({}))

    def value(self, schema: Schema | None, *, strings: bool) -> Symbol:
        """The symbol of a schema's values; None is any value."""
        number = self._any if schema is None else self._number(schema)
        return ("value", number, strings)

    def _number(self, schema: Schema) -> int:
        key = id(schema.node)
        if key not in self._numbers:
            self._numbers[key] = len(self._schemas)
            self._schemas.append(schema)
        return self._numbers[key]

    def expand(self, symbol: Symbol) -> Iterable[Sequence[Symbol]]:
        """The sequences that a symbol of JSON stands for."""
        kind = symbol[0]
        if kind in _FIXED:
            return _FIXED[kind]
        if kind == "value":
            return self._values(self._schemas[symbol[1]], strings=symbol[2])
        if kind == "spaces":
            left = symbol[1]
            return ((), ((ONE, _SPACES), ("spaces", left - 1))) if left else ((),)
        if kind == "members":
            return self._members(symbol[1], symbol[2])
        if kind == "items":
            return self._items(symbol[1])
        raise AssertionError(f"unknown symbol {symbol}")

    def _values(self, schema: Schema, *, strings: bool) -> list[Sequence[Symbol]]:
        node = schema.node if isinstance(schema.node, Mapping) else {}
        listed = node.get("enum", [node["const"]] if "const" in node else None)
        if isinstance(listed, Sequence):
            return [[literal(t)] for v in listed for t in _spellings(v, strings=strings)]
        for key in ("anyOf", "oneOf", "allOf"):
            options = node.get(key)
            if isinstance(options, Sequence) and options:
                # Of several demands the first is followed; the others are left to validation.
                chosen = options[:1] if key == "allOf" else options
                return [[self.value(schema.under(o), strings=strings)] for o in chosen]
        kinds = node.get("type", _KINDS)
        return [
            sequence
            for kind in ([kinds] if isinstance(kinds, str) else kinds)
            if strings or kind != "string"
            for sequence in self._of_kind(kind, schema)
        ]

    def _of_kind(self, kind: str, schema: Schema) -> list[Sequence[Symbol]]:
        number = self._number(schema)
        space = ("spaces", _MAX_SPACES)
        if kind == "object":
            return [[literal("{"), space, ("members", number, frozenset())]]
        if kind == "array":
            filled = [literal("["), space, ("items", number)]
            is_free = not schema.node.get("minItems")
            return [filled, [literal("[]")]] if is_free else [filled]
        return [[(kind,)]] if kind in _FIXED else []

    def _members(self, number: int, seen: frozenset[str]) -> list[Sequence[Symbol]]:
        """What may follow the members so far: the end, or another one."""
        schema = self._schemas[number]
        required = schema.node.get("required") or ()
        space = ("spaces", _MAX_SPACES)
        found: list[Sequence[Symbol]] = []
        if all(name in seen for name in required):
            found.append([space, literal("}")] if seen else [literal("}")])
        comma = [literal(","), space] if seen else []
        for name in schema.properties:
            if name not in seen:
                value = self.value(schema.property(name), strings=True)
                key = literal(f"{json.dumps(name, ensure_ascii=False)}:")
                rest = ("members", number, seen | {name})
                found.append([*comma, key, space, value, rest])
        others = schema.node.get("additionalProperties")
        if (others is None and not schema.properties) or others not in (None, False):
            rule = schema.under(others) if isinstance(others, Mapping) else None
            value = self.value(rule, strings=True)
            rest = ("members", number, seen | {""})
            found.append([*comma, ("string",), literal(":"), space, value, rest])
        return found

    def _items(self, number: int) -> list[Sequence[Symbol]]:
        schema = self._schemas[number]
        items = schema.node.get("items")
        rule = schema.under(items) if isinstance(items, Mapping) else None
        value, space = self.value(rule, strings=True), ("spaces", _MAX_SPACES)
        return [
            [value, space, literal("]")],
            [value, literal(","), space, ("items", number)],
        ]


def _spellings(value: Any, *, strings: bool) -> list[str]:
    if isinstance(value, str) and not strings:
        return []
    spaced = json.dumps(value, ensure_ascii=False)
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return [spaced] if spaced == compact else [spaced, compact]
