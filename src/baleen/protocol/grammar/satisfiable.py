"""Which schemas can be met at all: a grammar must not lead a sampler where nothing may follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.grammar.containers import Items, Members, count_of
from baleen.protocol.grammar.numbers import bounded_number, bounds_of
from baleen.protocol.grammar.shapes import kinds_of, pattern_of
from baleen.protocol.schema import Schema

if TYPE_CHECKING:
    from baleen.protocol.grammar.json_rules import JsonRules

_MAX_SCHEMAS: Final = 20_000


class Satisfiable:
    """Which schemas some value conforms to, as far as the grammar follows them."""

    def __init__(self, rules: JsonRules) -> None:
        self._rules = rules
        self._known: dict[int, bool] = {}

    def admits(self, number: int) -> bool:
        """Whether a value conforms to a schema."""
        if number not in self._known:
            self._find(number)
        return self._known[number]

    def _find(self, number: int) -> None:
        """Assume that nothing can be met, and go over what is left until no more can."""
        rules, todo, open_numbers = self._rules, [number], []
        while todo:
            current = todo.pop()
            if current in self._known:
                continue
            self._known[current] = False
            open_numbers.append(current)
            if len(open_numbers) > _MAX_SCHEMAS:
                raise ToolSchemaError("a tool's schema has too many parts to follow")
            for place in rules.shapes(current):
                todo += (rules.number(schema) for _, schema in rules.below(place))
        has_changed = True
        while has_changed:
            found = [n for n in open_numbers if not self._known[n] and self._is_met(n)]
            self._known.update(dict.fromkeys(found, True))
            has_changed = bool(found)

    def _is_met(self, number: int) -> bool:
        rules = self._rules
        for place in rules.shapes(number):
            listed = rules.listed(place)
            if listed is not None:
                if listed:
                    return True
            elif any(self.has_kind(kind, place) for kind in kinds_of(rules.shape(place))):
                return True
        return False

    def has_kind(self, kind: str, place: int) -> bool:
        """Whether a shape admits a value of some type."""
        shape = self._rules.shape(place)
        if kind == "object":
            return self._has_object(self._rules.members(place))
        if kind == "array":
            return self._has_array(self._rules.items(place))
        if kind == "string":
            least, most = count_of(shape, "minLength") or 0, count_of(shape, "maxLength")
            return pattern_of(shape) is not None or most is None or least <= most
        if kind in ("integer", "number"):
            return bool(bounded_number(bounds_of(shape), is_integer=kind == "integer"))
        return True

    def _has_object(self, members: Members) -> bool:
        rules = self._rules
        for name in members.required:
            schema = members.named.get(name)
            if schema is None or not self._known[rules.number(schema)]:
                return False
        num_named = sum(self._known[rules.number(schema)] for schema in members.named.values())
        is_open = members.is_open and self._known[rules.number(members.others)]
        others = [Schema(node, members.others.root) for node in members.patterns.values()]
        is_open = is_open or any(self._known[rules.number(schema)] for schema in others)
        most = members.most if members.most is not None else max(members.least, num_named)
        return len(members.required) <= most >= members.least and (
            is_open or num_named >= members.least
        )

    def _has_array(self, items: Items) -> bool:
        if items.most is not None and items.most < items.least:
            return False
        return all(
            self._known[self._rules.number(items.at(index))]
            for index in range(min(items.least, _MAX_SCHEMAS))
        )
