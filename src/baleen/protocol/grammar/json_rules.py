"""JSON values of a schema, as grammar symbols.

Followed are types, enumerations, properties in any order with the required ones, items, bounds on
numbers, lengths and counts, patterns as far as they are regular, alternatives, demands to be met
together, references. What is not followed :meth:`JsonRules.unenforced` names. An object with
declared properties has no others unless its schema says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from baleen.protocol.grammar.automaton import COUNT, LITERAL, MANY, ONE, Symbol
from baleen.protocol.grammar.chars import char_sequences, complement, normalized
from baleen.protocol.grammar.containers import Items, Members, count_of
from baleen.protocol.grammar.numbers import Bounds, bounded_number, bounds_of, expand_number
from baleen.protocol.grammar.regex import any_char, expand_regular, pattern_symbol, repeated
from baleen.protocol.grammar.satisfiable import Satisfiable
from baleen.protocol.grammar.shapes import (
    Shape,
    kinds_of,
    listed_values,
    pattern_of,
    shapes_of,
    unenforced,
)
from baleen.protocol.schema import Schema

_DIGITS: Final = frozenset(b"0123456789")
_PLAIN: Final = frozenset(range(0x20, 0x100)) - frozenset(b'"\\')
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_SPACES: Final = frozenset(b" \n")
_MAX_SPACES: Final = 16

_PLAIN_TEXT: Final[Symbol] = (COUNT, _PLAIN, 0, None, ())
"""The inside of a JSON string, up to a quote or an escape."""


def literal(text: str) -> Symbol:
    """Exactly this text."""
    return (LITERAL, text.encode("utf-8", "replace"))


_SPACE: Final[Symbol] = ("spaces", _MAX_SPACES)
_QUOTE: Final = literal('"')
_FIXED: Final[dict[str, tuple[tuple[Symbol, ...], ...]]] = {
    "string": ((_QUOTE, ("string rest",)),),
    "string rest": ((_PLAIN_TEXT, ("string end",)),),
    "string end": ((_QUOTE,), (literal("\\"), ("escape",), ("string rest",))),
    "escape": (
        ((ONE, frozenset(b'"\\/bfnrt')),),
        (literal("u"), (ONE, _HEX), (ONE, _HEX), (ONE, _HEX), (ONE, _HEX)),
    ),
    "sign": ((), (literal("-"),)),
    "integer": ((("sign",), ("digits",)),),
    "digits": ((literal("0"),), ((ONE, frozenset(b"123456789")), (MANY, _DIGITS))),
    "number": ((("integer",), ("fractional part",), ("exponent",)),),
    "fractional part": ((), (literal("."), (ONE, _DIGITS), (MANY, _DIGITS))),
    "exponent": (
        (),
        ((ONE, frozenset(b"eE")), ("exponent sign",), (ONE, _DIGITS), (MANY, _DIGITS)),
    ),
    "exponent sign": ((), ((ONE, frozenset(b"+-")),)),
    "boolean": ((literal("true"),), (literal("false"),)),
    "null": ((literal("null"),),),
}


def text_symbol(shape: Shape, *, quoted: bool) -> Symbol | None:
    """The characters of a string of some shape; None if it may be any string."""
    pattern = pattern_of(shape)
    if pattern is not None:
        return pattern_symbol(pattern, quoted=quoted)
    least, most = count_of(shape, "minLength") or 0, count_of(shape, "maxLength")
    return repeated(any_char(quoted=quoted), least, most) if least or most is not None else None


class JsonRules:
    """Expands ``("value", n, strings)`` and what it consists of; ``n`` is a schema's number.

    ``strings`` False leaves out a bare string at the top. Schemas that read alike have one number,
    so that the states of an automaton stay few. ``any_order`` False keeps members in the order in
    which they are declared.
    """

    def __init__(self, *, any_order: bool = True) -> None:
        self._any_order = any_order
        self._schemas: list[Schema] = []
        self._numbers: dict[tuple[int, str], int] = {}
        self._shapes: dict[int, list[int]] = {}
        self._shape_list: list[tuple[Shape, Schema]] = []
        self._members: dict[int, Members] = {}
        self._items: dict[int, Items] = {}
        self._satisfiable = Satisfiable(self)

    def number(self, schema: Schema) -> int:
        """The number of a schema."""
        key = (id(schema.root), json.dumps(schema.given, sort_keys=True, default=str))
        if key not in self._numbers:
            self._numbers[key] = len(self._schemas)
            self._schemas.append(schema)
        return self._numbers[key]

    def schema(self, number: int) -> Schema:
        """A schema by its number."""
        return self._schemas[number]

    def value(self, schema: Schema, *, strings: bool) -> Symbol:
        """The symbol of a schema's values."""
        return ("value", self.number(schema), strings)

    def shapes(self, number: int) -> list[int]:
        """The numbers of a schema's shapes."""
        if number not in self._shapes:
            schema = self._schemas[number]
            found = shapes_of(schema)
            start = len(self._shape_list)
            self._shape_list += [(shape, schema) for shape in found]
            self._shapes[number] = list(range(start, start + len(found)))
        return self._shapes[number]

    def shape(self, place: int) -> Shape:
        """A shape by its number."""
        return self._shape_list[place][0]

    def listed(self, place: int) -> list[Any] | None:
        """The values that a shape lists; None if it lists none."""
        shape, schema = self._shape_list[place]
        return listed_values(shape, schema.root)

    def members(self, place: int) -> Members:
        """What objects of a shape may hold."""
        if place not in self._members:
            shape, schema = self._shape_list[place]
            self._members[place] = Members(shape, schema.root)
        return self._members[place]

    def items(self, place: int) -> Items:
        """What arrays of a shape may hold."""
        if place not in self._items:
            shape, schema = self._shape_list[place]
            self._items[place] = Items(shape, schema.root)
        return self._items[place]

    def below(self, place: int) -> Iterator[tuple[str, Schema]]:
        """The schemas within a shape, by what leads to them."""
        members = self.members(place)
        yield from ((f".{name}", schema) for name, schema in members.named.items())
        yield ".*", members.others
        for node in members.patterns.values():
            yield ".*", Schema(node, members.others.root)
        yield from self.items(place).below()

    # --- what symbols stand for ----------------------------------------------------------------

    def expand(self, symbol: Symbol) -> Iterable[Sequence[Symbol]]:
        """The sequences that a symbol of JSON stands for."""
        kind = symbol[0]
        if kind in _FIXED:
            return _FIXED[kind]
        if kind == "value":
            return self._values(symbol[1], strings=symbol[2])
        if kind == "spaces":
            left = symbol[1]
            return ((), ((ONE, _SPACES), ("spaces", left - 1))) if left else ((),)
        if kind == "members":
            return self._object(*symbol[1:])
        if kind == "items":
            return self._array(*symbol[1:])
        if kind == "other key":
            return _other_key(symbol[1])
        if kind == "char":
            return char_sequences(symbol[1], quoted=symbol[2])
        found = expand_regular(symbol)
        if found is None:
            found = expand_number(symbol)
        if found is None:
            raise AssertionError(f"unknown symbol {symbol}")
        return found

    def _values(self, number: int, *, strings: bool) -> list[Sequence[Symbol]]:
        found: list[Sequence[Symbol]] = []
        if not self._satisfiable.admits(number):
            return found
        for place in self.shapes(number):
            listed = self.listed(place)
            if listed is not None:
                found += [[literal(t)] for v in listed for t in _spellings(v, strings=strings)]
                continue
            for kind in kinds_of(self.shape(place)):
                if (strings or kind != "string") and self._satisfiable.has_kind(kind, place):
                    found += self._of_kind(kind, place)
        return found

    def _of_kind(self, kind: str, place: int) -> list[Sequence[Symbol]]:
        shape = self.shape(place)
        if kind == "object":
            return [[literal("{"), _SPACE, ("members", place, frozenset(), 0)]]
        if kind == "array":
            filled = [literal("["), _SPACE, ("items", place, 0)]
            items = self.items(place)
            empty: list[Sequence[Symbol]] = [] if items.least else [[literal("[]")]]
            return [filled, *empty] if self._may_come(items, 0) else empty
        if kind == "string":
            text = text_symbol(shape, quoted=True)
            return [[("string",)]] if text is None else [[_QUOTE, text, _QUOTE]]
        if kind in ("integer", "number"):
            bounds = bounds_of(shape)
            if bounds != Bounds():
                return bounded_number(bounds, is_integer=kind == "integer")
        return [[(kind,)]] if kind in _FIXED else []

    def _object(self, place: int, seen: frozenset[str], others: int) -> list[Sequence[Symbol]]:
        """What may follow the members so far: the end, or another one."""
        members = self.members(place)
        is_first = not (seen or others)
        found: list[Sequence[Symbol]] = []
        if members.may_end(seen, others):
            found.append([literal("}")] if is_first else [_SPACE, literal("}")])
        comma = [] if is_first else [literal(","), _SPACE]
        for name, schema, now_seen in self.next_named(place, seen, others):
            key = literal(f"{json.dumps(name, ensure_ascii=False)}:")
            rest = ("members", place, now_seen, others)
            found.append([*comma, key, _SPACE, self.value(schema, strings=True), rest])
        if members.room_for("", seen, others):
            rest = ("members", place, seen, members.one_more(others))
            for key_symbol, schema in self._other_members(members):
                value = self.value(schema, strings=True)
                found.append([*comma, _QUOTE, key_symbol, literal(":"), _SPACE, value, rest])
        return found

    def next_named(
        self, place: int, seen: frozenset[str], others: int
    ) -> Iterator[tuple[str, Schema, frozenset[str]]]:
        """The declared members that may come next, with all that are done with behind them."""
        members = self.members(place)
        counts = bool(members.least) or members.most is not None
        skipped: set[str] = set()
        for name, schema in members.named.items():
            if name in seen:
                skipped = set() if counts else skipped
                continue
            if members.room_for(name, seen, others) and self.admits(schema):
                yield name, schema, seen | skipped | {name}
            if not self._any_order:
                if name in members.required:
                    return
                if not counts:
                    skipped.add(name)

    def _other_members(self, members: Members) -> Iterator[tuple[Symbol, Schema]]:
        """Keys that are not declared, their closing quote included, and what stands there."""
        for pattern, node in members.patterns.items():
            key = text_symbol({"pattern": pattern}, quoted=True)
            schema = Schema(node, members.others.root)
            if key is not None and self.admits(schema):
                yield ("sequence", (key, _QUOTE)), schema
        if self.is_open(members):
            names = (json.dumps(name, ensure_ascii=False)[1:-1] for name in members.named)
            yield ("other key", frozenset(names)), members.others

    def _array(self, place: int, index: int) -> list[Sequence[Symbol]]:
        """The item at a place and what may follow it."""
        items = self.items(place)
        if not self._may_come(items, index):
            return []
        value = self.value(items.at(index), strings=True)
        found: list[Sequence[Symbol]] = []
        if index + 1 >= items.least:
            found.append([value, _SPACE, literal("]")])
        if self._may_come(items, index + 1):
            rest = ("items", place, items.place_after(index))
            found.append([value, literal(","), _SPACE, rest])
        return found

    def _may_come(self, items: Items, index: int) -> bool:
        has_room = items.most is None or index < items.most
        return has_room and self.admits(items.at(index))

    # --- what can be met at all ----------------------------------------------------------------

    def admits(self, schema: Schema) -> bool:
        """Whether some value conforms to a schema; a grammar must not lead where none does."""
        return self._satisfiable.admits(self.number(schema))

    def is_open(self, members: Members) -> bool:
        """Whether an object may have undeclared members."""
        return members.is_open and self.admits(members.others)

    # --- what is not followed ------------------------------------------------------------------

    def unenforced(self, number: int, path: str, known: set[int]) -> Iterator[str]:
        """The keywords below a schema that the grammar does not follow, with their paths."""
        if number in known:
            return
        known.add(number)
        for place in self.shapes(number):
            shape = self.shape(place)
            yield from (f"{path}: {what}" for what in unenforced(shape))
            for pattern in self.members(place).patterns:
                if pattern_of({"pattern": pattern}) is None:
                    yield f"{path}: patternProperties {pattern!r}"
            for step, member in self.below(place):
                yield from self.unenforced(self.number(member), path + step, known)


def other_text(kind: str, names: frozenset[str], excluded: str) -> list[Sequence[Symbol]]:
    """The rest of a text that must not end as one of these names, its quote included.

    ``excluded`` are the characters that cannot stand in it; ``kind`` is that of the symbol.
    """
    firsts = sorted({name[0] for name in names if name})
    found: list[Sequence[Symbol]] = [] if "" in names else [[_QUOTE]]
    for first in firsts:
        rest = frozenset(name[1:] for name in names if name[:1] == first)
        found.append([literal(first), (kind, rest)])
    taken = normalized([(0, 0x1F), *((ord(char), ord(char)) for char in (*firsts, *excluded))])
    return [*found, [("char", complement(taken), False), (kind, frozenset())]]


def _other_key(names: frozenset[str]) -> list[Sequence[Symbol]]:
    return other_text("other key", names, '"\\') if names else [[("string rest",)]]


def _spellings(value: Any, *, strings: bool) -> list[str]:
    if isinstance(value, str) and not strings:
        return []
    spaced = json.dumps(value, ensure_ascii=False)
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return [spaced] if spaced == compact else [spaced, compact]
