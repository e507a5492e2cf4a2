"""A schema as the alternatives that a value may choose from.

``allOf`` and keywords beside ``$ref`` are demands to be met together: they are merged. ``anyOf``,
``oneOf`` and type lists are choices: they are multiplied out. What comes out are plain schemas
without either, called shapes. Whatever a shape demands and the grammar cannot follow is named by
:func:`unenforced`, so that nobody takes a grammar for stricter than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.grammar.regex import PatternNotRegular, is_found, pattern_symbol
from baleen.protocol.schema import Schema, same_json

Shape = Mapping[str, Any]

KINDS: Final = ("object", "array", "string", "number", "boolean", "null")
_MAX_SHAPES: Final = 256
_MAX_DEPTH: Final = 40
_CHOICES: Final = ("anyOf", "oneOf")
_PLAIN: Final = frozenset({"allOf", "$ref", *_CHOICES})

FORMATS: Final = {
    "date": r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$",
    "time": r"^([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$",
    "date-time": r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T"
    r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$",
    "email": r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$",
    "hostname": r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$",
    "ipv4": r"^((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)$",
    "uuid": r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$",
}
"""String formats that are followed, as patterns."""

_NOT_FOLLOWED: Final = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "propertyNames"),
    *("unevaluatedProperties", "unevaluatedItems", "contains", "multipleOf", "$dynamicRef"),
)


def shapes_of(schema: Schema) -> list[Shape]:
    """The alternatives of a schema; none if nothing conforms to it.

    Raises:
        ToolSchemaError: there are too many, or references that lead back to themselves.
    """
    return _options(schema, schema.given, 0)


def _options(schema: Schema, node: Any, depth: int) -> list[Shape]:
    if node is False:
        return []
    if not isinstance(node, Mapping):
        return [{}]
    if depth > _MAX_DEPTH:
        raise ToolSchemaError(
            "a tool's schema nests its alternatives without end",
            remedy="remove the reference that leads back to itself outside of properties and items",
        )
    expand = partial(_options, schema, depth=depth + 1)
    options: list[Shape] = [{key: value for key, value in node.items() if key not in _PLAIN}]
    demands = list(node["allOf"]) if isinstance(node.get("allOf"), Sequence) else []
    if isinstance(node.get("$ref"), str):
        target = schema.lookup(node["$ref"])
        demands.append(target if target != {} else {"$unenforced": ["$ref"]})
    for demand in demands:
        options = _product(options, expand(demand))
    for key in _CHOICES:
        choices = node.get(key)
        if isinstance(choices, Sequence) and choices:
            found = [expand(choice) for choice in choices]
            shapes = [shape for choice in found for shape in choice]
            if key == "oneOf" and not _exclude_each_other(found):
                shapes = [_noted(shape, "oneOf") for shape in shapes]
            options = _product(options, shapes)
    return options


def _product(first: Iterable[Shape], second: Sequence[Shape]) -> list[Shape]:
    found = [m for one in first for other in second if (m := _merged(one, other)) is not None]
    if len(found) > _MAX_SHAPES:
        raise ToolSchemaError(
            f"a tool's schema has more than {_MAX_SHAPES} alternatives in one place",
            remedy="write fewer alternatives into anyOf, oneOf and allOf",
        )
    return found


def _exclude_each_other(choices: Sequence[Sequence[Shape]]) -> bool:
    """Whether no value can conform to two choices, as far as types and listed values tell."""
    return all(
        _are_apart(one, other)
        for place, shapes in enumerate(choices)
        for others in choices[place + 1 :]
        for one in shapes
        for other in others
    )


def _are_apart(first: Shape, second: Shape) -> bool:
    merged = _merged(first, second)
    if merged is None:
        return True
    kinds = kinds_of(merged)
    if not kinds or listed_values(merged) == []:
        return True
    if kinds != ["object"]:
        return False
    members = merged.get("properties") or {}
    required = merged.get("required") or ()
    return any(
        all(isinstance(part, Mapping) for part in parts) and _are_apart(parts[0], parts[1])
        for name in required
        if (parts := (members.get(name) or {}).get("allOf") or ()) and len(parts) == 2
    )


def _noted(shape: Shape, what: str) -> Shape:
    return {**shape, "$unenforced": [*shape.get("$unenforced", ()), what]}


# --- merging -----------------------------------------------------------------------------------


def _merged(first: Shape, second: Shape) -> Shape | None:
    """A shape that asks for all that both ask for; None if their types exclude each other."""
    if "const" in first and "const" in second and not same_json(first["const"], second["const"]):
        return None
    merged: dict[str, Any] = {**first, **second}
    for key in first.keys() & second.keys():
        if first[key] != second[key]:
            merge = _MERGES.get(key)
            if merge is not None:
                merged[key] = merge(first[key], second[key])
            elif key not in _NOTES:
                merged[key] = first[key]
                merged = {**_noted(merged, key)}
    if "type" in first and "type" in second:
        one, other = kinds_of(first), kinds_of(second)
        merged["type"] = [kind for kind in one if kind in _within(other)]
        merged["type"] += [k for k in other if k not in merged["type"] and k in _within(one)]
        if not merged["type"]:
            return None
    if "properties" in first or "properties" in second:
        merged["properties"] = _members(first, second)
    if "prefixItems" in first or "prefixItems" in second:
        merged["prefixItems"] = _leading(first, second)
    return merged


def _within(kinds: Sequence[str]) -> set[str]:
    """The kinds of which every value is of one of these."""
    return {*kinds, "integer"} if "number" in kinds else set(kinds)


def _members(first: Shape, second: Shape) -> dict[str, Any]:
    """Properties of both; what one does not name has to fit its rule for all others."""
    found: dict[str, Any] = {}
    for one, other in ((first, second), (second, first)):
        known = other.get("properties") or {}
        for name, rule in (one.get("properties") or {}).items():
            beside = known.get(name, other.get("additionalProperties", True))
            if name in found or (name not in known and other.get("patternProperties")):
                found.setdefault(name, rule)
            elif beside is True or beside == rule:
                found[name] = rule
            elif beside is not False:
                found[name] = {"allOf": [rule, beside]}
    return found


def _both(first: Any, second: Any) -> Any:
    if first is True or second is True:
        return second if first is True else first
    return False if first is False or second is False else {"allOf": [first, second]}


def _union(first: Any, second: Any) -> list[Any]:
    return [*first, *(name for name in second if name not in first)]


def _common(first: Any, second: Any) -> list[Any]:
    return [value for value in first if any(same_json(value, other) for other in second)]


def _leading(first: Shape, second: Shape) -> list[Any]:
    """Rules for the first items; where one shape has none, its rule for all others counts."""
    rules = [shape.get("prefixItems") or () for shape in (first, second)]
    filled = [
        [*leading, *[shape.get("items", True)] * (max(map(len, rules)) - len(leading))]
        for leading, shape in zip(rules, (first, second), strict=True)
    ]
    return [_both(one, other) for one, other in zip(*filled, strict=True)]


_MERGES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    "required": _union,
    "enum": _common,
    "additionalProperties": _both,
    "items": _both,
    "prefixItems": lambda first, second: first,
    "uniqueItems": lambda first, second: first or second,
    "$unenforced": _union,
    "type": lambda first, second: first,
    "properties": lambda first, second: first,
}
_NOTES: Final = frozenset(
    {"title", "description", "default", "examples", "$comment", "$defs", "definitions", "$schema"}
    | {"$id", "$anchor", "deprecated", "readOnly", "writeOnly", "nullable"}
)
"""Keywords that say nothing about which values conform."""


# --- reading a shape ---------------------------------------------------------------------------


def kinds_of(shape: Shape) -> list[str]:
    """The types that a shape admits."""
    kinds = shape.get("type", KINDS)
    return [kinds] if isinstance(kinds, str) else list(kinds)


def listed_values(shape: Shape, root: Any = None) -> list[Any] | None:
    """The values of an enumeration that conform to the rest of the shape; None if there is none.

    ``root`` is the document that references in the shape point into.
    """
    if "const" in shape:
        values = [shape["const"]]
    elif isinstance(shape.get("enum"), Sequence):
        values = list(shape["enum"])
    else:
        return None
    rest, pattern = Schema(shape, root), pattern_of(shape)
    return [
        value
        for value in values
        if rest.validates(value)
        and (pattern is None or not isinstance(value, str) or is_found(pattern, value))
    ]


def pattern_of(shape: Shape) -> str | None:
    """The pattern that a string of this shape is held to; None if there is none that is read."""
    for pattern in (shape.get("pattern"), FORMATS.get(str(shape.get("format")))):
        if isinstance(pattern, str):
            try:
                pattern_symbol(pattern, quoted=False)
            except (PatternNotRegular, ValueError):
                continue
            return pattern
    return None


def unenforced(shape: Shape) -> Iterator[str]:
    """The keywords of a shape that the grammar does not follow."""
    yield from shape.get("$unenforced", ())
    if listed_values(shape) is not None:
        return
    yield from (key for key in _NOT_FOLLOWED if key in shape)
    if shape.get("uniqueItems"):
        yield "uniqueItems"
    if shape.get("patternProperties") and (
        shape.get("properties") or len(shape["patternProperties"]) > 1
    ):
        yield "patternProperties where names overlap"
    yield from _unenforced_in_strings(shape)


def _unenforced_in_strings(shape: Shape) -> Iterator[str]:
    if "string" not in kinds_of(shape):
        return
    followed = pattern_of(shape)
    if "pattern" in shape and followed != shape["pattern"]:
        yield "pattern"
    if "format" in shape and (followed is None or followed != FORMATS.get(str(shape["format"]))):
        yield "format"
    if followed is not None and ("minLength" in shape or "maxLength" in shape):
        yield "minLength and maxLength beside pattern"
