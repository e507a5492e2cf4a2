"""As much of JSON Schema as deciding on a repair needs.

A repair is made only if its result validates, so an unknown keyword must never let a wrong value
through where a known one would have stopped it; unknown keywords themselves are ignored, as the
standard says. ``$ref`` is followed inside the same document. Patterns are ignored too: they come
from the network, and some of them take a regular-expression engine forever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeGuard
from urllib.parse import unquote

_MAX_REFS: Final = 32

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "object": (dict,),
    "array": (list,),
    "boolean": (bool,),
    "null": (type(None),),
}


_COMBINATIONS: Final[dict[str, Callable[[int, int], bool]]] = {
    "allOf": lambda fitting, given: fitting == given,
    "anyOf": lambda fitting, given: fitting > 0,
    "oneOf": lambda fitting, given: fitting == 1,
}
"""How many of the given options have to fit."""


class Schema:
    """A JSON schema with the document that its references point into."""

    __slots__ = ("given", "node", "root")

    def __init__(self, node: Any, root: Any = None) -> None:
        self.root = node if root is None else root
        self.given = node
        self.node = self._resolve(node)

    def _resolve(self, node: Any) -> Any:
        for _ in range(_MAX_REFS):
            if not (isinstance(node, Mapping) and isinstance(node.get("$ref"), str)):
                return node
            node = self.lookup(node["$ref"])
        return {}

    def lookup(self, reference: str) -> Any:
        """What a reference into the same document points at; any value if at nothing."""
        if reference != "#" and not reference.startswith("#/"):
            return {}
        node = self.root
        for step in unquote(reference).split("/")[1:]:
            node = _step(node, step.replace("~1", "/").replace("~0", "~"))
        return node if node is not None else {}

    def under(self, node: Any) -> Schema:
        """A schema that stands within this one."""
        return Schema(node, self.root)

    @property
    def properties(self) -> Mapping[str, Any]:
        """Schemas of the named properties, empty if there are none."""
        found = self.node.get("properties") if isinstance(self.node, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def property(self, name: str) -> Schema | None:
        """The schema of one property, None if it says nothing about that name."""
        found = self.properties.get(name)
        return self.under(found) if isinstance(found, Mapping) and found else None

    def admits_strings(self) -> bool:
        """Whether some string could validate; errs on the side of yes."""
        return self._admits_strings(_MAX_REFS)

    def _admits_strings(self, budget: int) -> bool:
        node = self.node
        if not isinstance(node, Mapping) or budget <= 0:
            return node is not False
        kinds = node.get("type")
        if isinstance(kinds, str) and kinds != "string":
            return False
        if isinstance(kinds, Sequence) and not isinstance(kinds, str) and "string" not in kinds:
            return False
        if "const" in node and not isinstance(node["const"], str):
            return False
        values = node.get("enum")
        if isinstance(values, Sequence) and not any(isinstance(v, str) for v in values):
            return False
        for key in ("anyOf", "oneOf"):
            options = node.get(key)
            if isinstance(options, Sequence) and not any(
                self.under(option)._admits_strings(budget - 1) for option in options
            ):
                return False
        every = node.get("allOf")
        if isinstance(every, Sequence):
            return all(self.under(o)._admits_strings(budget - 1) for o in every)
        return True

    def validates(self, value: Any, budget: int = 200) -> bool:
        """Whether the value conforms; nesting beyond ``budget`` levels counts as not."""
        node = self.node
        if isinstance(node, bool):
            return node
        if not isinstance(node, Mapping):
            return True
        return (
            budget > 0
            and _type_fits(node.get("type"), value)
            and _value_fits(node, value)
            and self._combinations_fit(node, value, budget - 1)
            and self._members_fit(node, value, budget - 1)
            and self._items_fit(node, value, budget - 1)
        )

    def _combinations_fit(self, node: Mapping[str, Any], value: Any, budget: int) -> bool:
        for key, suffices in _COMBINATIONS.items():
            options = node.get(key)
            if isinstance(options, Sequence):
                num_fitting = sum(self.under(o).validates(value, budget) for o in options)
                if not suffices(num_fitting, len(options)):
                    return False
        return "not" not in node or not self.under(node["not"]).validates(value, budget)

    def _members_fit(self, node: Mapping[str, Any], value: Any, budget: int) -> bool:
        if not isinstance(value, dict):
            return True
        required = node.get("required")
        if isinstance(required, Sequence) and not all(name in value for name in required):
            return False
        known, others = self.properties, node.get("additionalProperties")
        if isinstance(node.get("patternProperties"), Mapping):
            others = None
        for name, member in value.items():
            rule = known.get(name, others)
            if rule is not None and not self.under(rule).validates(member, budget):
                return False
        return True

    def _items_fit(self, node: Mapping[str, Any], value: Any, budget: int) -> bool:
        if not isinstance(value, list):
            return True
        if not _within(len(value), node.get("minItems"), node.get("maxItems")):
            return False
        leading, rest = node.get("prefixItems"), node.get("items")
        rules = list(leading) if isinstance(leading, Sequence) else []
        for place, item in enumerate(value):
            rule = rules[place] if place < len(rules) else rest
            if rule is not None and not self.under(rule).validates(item, budget):
                return False
        return True


def _step(node: Any, step: str) -> Any:
    if isinstance(node, Mapping):
        return node.get(step)
    if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
        return node[int(step)]
    return None


def _type_fits(kinds: Any, value: Any) -> bool:
    if kinds is None:
        return True
    if isinstance(kinds, str):
        return _is_kind(kinds, value)
    return isinstance(kinds, Sequence) and any(_is_kind(kind, value) for kind in kinds)


def _is_kind(kind: Any, value: Any) -> bool:
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return kind == "number" or isinstance(value, int) or value.is_integer()
    known = _TYPES.get(kind) if isinstance(kind, str) else None
    return known is None or isinstance(value, known)


def _value_fits(node: Mapping[str, Any], value: Any) -> bool:
    if "const" in node and not same_json(node["const"], value):
        return False
    values = node.get("enum")
    if isinstance(values, Sequence) and not any(same_json(known, value) for known in values):
        return False
    if isinstance(value, str):
        return _within(len(value), node.get("minLength"), node.get("maxLength"))
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
        return (
            _within(value, node.get("minimum"), node.get("maximum"))
            and (not _is_number(low) or value > low)
            and (not _is_number(high) or value < high)
        )
    return True


def same_json(first: Any, second: Any) -> bool:
    """Equal as JSON: 1 is 1.0 but not true."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(
            same_json(value, second[key]) for key, value in first.items()
        )
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same_json, first, second))
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(size: float, low: Any, high: Any) -> bool:
    return (not _is_number(low) or size >= low) and (not _is_number(high) or size <= high)
