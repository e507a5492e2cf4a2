"""What objects and arrays of one shape may hold, and how many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from baleen.protocol.grammar.shapes import Shape
from baleen.protocol.schema import Schema


def count_of(shape: Shape, key: str) -> int | None:
    """A keyword that is a number of things."""
    value = shape.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return max(int(value), 0)


class Members:
    """What an object of some shape may hold."""

    def __init__(self, shape: Shape, root: Any) -> None:
        given = shape.get("properties")
        rule = shape.get("additionalProperties")
        patterns = shape.get("patternProperties")
        self.required = frozenset(shape.get("required") or ())
        self.patterns: Mapping[str, Any] = patterns if isinstance(patterns, Mapping) else {}
        self.is_open = bool(rule) if rule is not None else not (given or self.patterns)
        if isinstance(rule, Mapping):
            self.is_open = True
        self.others = Schema(rule if isinstance(rule, Mapping) else {}, root)
        named: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
        if self.is_open:
            for name in shape.get("required") or ():
                named.setdefault(name, self.others.given)
        self.named = {name: Schema(node, root) for name, node in named.items()}
        self.least = count_of(shape, "minProperties") or 0
        self.most = count_of(shape, "maxProperties")

    def room_for(self, name: str, seen: frozenset[str], num_others: int) -> bool:
        """Whether this member may come and still leave room for all that are missing."""
        missing = len(self.required - seen - {name})
        return self.most is None or len(seen) + num_others + 1 + missing <= self.most

    def may_end(self, seen: frozenset[str], num_others: int) -> bool:
        """Whether nothing is missing any more."""
        return self.required <= seen and len(seen) + num_others >= self.least

    def one_more(self, num_others: int) -> int:
        """The number of undeclared members after another one, as far as it matters."""
        return min(num_others + 1, max(self.least, self.most or 0, 1))


class Items:
    """What an array of some shape may hold."""

    def __init__(self, shape: Shape, root: Any) -> None:
        leading = shape.get("prefixItems") or ()
        self._leading = [Schema(node, root) for node in leading]
        self._rest = Schema(shape.get("items", True), root)
        self.least = count_of(shape, "minItems") or 0
        self.most = count_of(shape, "maxItems")

    def at(self, index: int) -> Schema:
        """The schema of an item."""
        return self._leading[index] if index < len(self._leading) else self._rest

    def place_after(self, index: int) -> int:
        """The next item's place, as far as places differ."""
        return min(index + 1, max(len(self._leading), self.least, self.most or 0))

    def below(self) -> Iterator[tuple[str, Schema]]:
        """The schemas of all places."""
        yield from ((f"[{place}]", schema) for place, schema in enumerate(self._leading))
        yield "[]", self._rest
