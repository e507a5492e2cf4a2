# ruff: noqa: E501  (one case a line reads best)
"""JSON that the grammar lets through conforms to its schema, and what conforms gets through."""

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.grammar import CallRules
from baleen.protocol.grammar.automaton import COUNT, LITERAL, MANY, ONE, Automaton, State
from baleen.protocol.grammar.json_rules import JsonRules
from baleen.protocol.grammar.regex import PatternNotRegular, pattern_symbol
from baleen.protocol.revision import Flavor
from baleen.protocol.schema import Schema
from baleen.protocol.tools import read_tools


class Values:
    """The values of one schema, as an automaton over their bytes."""

    def __init__(self, schema: Any) -> None:
        rules = JsonRules()
        self.automaton = Automaton(rules)
        self.number = rules.number(Schema(schema))
        self.unenforced = [*dict.fromkeys(rules.unenforced(self.number, "$", set()))]
        self.start = self.automaton.start([("value", self.number, True)])

    def admit(self, text: str) -> bool:
        state = self.start
        for byte in text.encode():
            state = self.automaton.after_byte(state, byte)
        return () in state

    def written(self, dice: random.Random, max_bytes: int = 400) -> str | None:
        """A random walk; None if it does not come to an end."""
        return written(self.automaton, self.start, dice, max_bytes)


def whole(out: bytearray) -> str | None:
    """The text; None if some bytes are no characters, whose lengths nothing counts."""
    try:
        return out.decode()
    except UnicodeDecodeError:
        return None


def next_bytes(state: State) -> list[int]:
    found: set[int] = set()
    for stack in state:
        if stack:
            kind, given, *_ = stack[0]
            if kind == LITERAL:
                found.add(given[0])
            elif kind in (ONE, MANY) or (kind == COUNT and stack[0][3] != 0):
                found |= given
    return sorted(found)


def written(automaton: Automaton, state: State, dice: random.Random, max_bytes: int) -> str | None:
    out = bytearray()
    while len(out) < max_bytes:
        allowed = next_bytes(state)
        if () in state and (not allowed or dice.random() < 0.3):
            return whole(out)
        # Brackets and quotes close more often than chance would have it, so that walks end.
        closers = [byte for byte in allowed if byte in b'"]}']
        byte = dice.choice(closers if closers and dice.random() < 0.4 else allowed or [0])
        assert allowed, bytes(out)
        out.append(byte)
        state = automaton.after_byte(state, byte)
    return None


CASES: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "integer", "minimum": 5}, ["5", "6", "10", "1234567890123"], ["4", "-5", "0", "05"]),
    ({"type": "integer", "minimum": -12, "maximum": 115}, ["-12", "0", "115", "99"], ["-13", "116"]),
    ({"type": "integer", "exclusiveMinimum": 0}, ["1", "10"], ["0", "-1", "-0"]),
    ({"type": "integer", "exclusiveMaximum": -3}, ["-4", "-10"], ["-3", "0", "3"]),
    ({"type": "number", "minimum": 0.25, "maximum": 3}, ["0.25", "0.3", "3", "3.00", "2.999"], ["0.2", "0.24999", "3.01", "0", "-1"]),
    ({"type": "number", "exclusiveMinimum": 0}, ["0.001", "1", "3.5"], ["0", "0.0", "-1"]),
    ({"type": "number", "exclusiveMaximum": 1, "minimum": -1.5}, ["-1.5", "-1.49", "0.99", "0"], ["1", "1.0", "-1.51"]),
    ({"type": "integer", "minimum": 3, "maximum": 2}, [], ["2", "3"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"äöü"', '"\\n\\u00e9"', '"🐋🐋"'], ['"a"', '"abcd"', '""']),
    ({"type": "string", "pattern": "^[a-c]+$"}, ['"abc"'], ['""', '"abd"', '"xabc"']),
    ({"type": "string", "pattern": "b.d"}, ['"abcde"', '"bäd"'], ['"bd"', '"b\\nd"']),
    ({"type": "string", "pattern": '^(?:"|\\\\)\\d{2,}$'}, ['"\\"12"', '"\\\\123"'], ['"12"', '"\\"1"']),
    ({"type": "string", "pattern": "^a|b$"}, ['"ax"', '"xb"'], ['"xa"', '"bx"']),
    ({"type": "string", "format": "date"}, ['"2026-02-28"'], ['"2026-13-01"', '"x"']),
    ({"type": "string", "format": "uuid"}, ['"01234567-89ab-cdef-0123-456789abcdef"'], ['"0123"']),
    ({"type": "array", "minItems": 2, "maxItems": 3}, ["[1, 2]", '[1,"x",null]'], ["[1]", "[1,2,3,4]", "[]"]),
    ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, ['["a", 1, 2]', '["a"]', "[]"], ["[1]", '["a", "b"]']),
    ({"type": "array", "prefixItems": [{"type": "null"}], "items": False}, ["[null]", "[]"], ["[null, 1]"]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"a": 1, "b": 2}', "{}"], ['{"a": "x"}']),
    ({"type": "object", "properties": {"k": {"type": "null"}}, "additionalProperties": True}, ['{"k": null, "kk": 5, "": 1}'], ['{"k": 5}']),
    ({"type": "object", "required": ["x"]}, ['{"x": 1}', '{"y": 2, "x": {}}'], ["{}", '{"y": 1}']),
    ({"type": "object", "minProperties": 1, "maxProperties": 2}, ['{"a": 1}', '{"a": 1, "b": 2}'], ["{}", '{"a":1,"b":2,"c":3}']),
    ({"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False}, ['{"x-a": 1}', "{}"], ['{"a": 1}', '{"x-a": "s"}']),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 5}]}, ["3", "5"], ["2", "6", '"x"']),
    ({"allOf": [{"type": ["integer", "string"]}, {"type": ["string", "null"]}]}, ['"x"'], ["1", "null"]),
    ({"allOf": [{"type": "number"}, {"type": "integer"}]}, ["3"], ["3.5"]),
    (
        {"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"properties": {"b": {"type": "integer"}}}]},
        ['{"a": "x"}', '{"b": 1, "a": "x"}'],
        ['{"b": 1}', '{"a": 1}'],
    ),
    (
        {"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a": 1}', '{"b": 1}', '{"a": 1, "b": 2}'],
        ["{}"],
    ),
    ({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}], "description": "d"}, ['"x"', "1"], ["0", "null"]),
    ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ['"x"', "null"], ["1"]),
    ({"const": {"a": [1]}}, ['{"a": [1]}', '{"a":[1]}'], ['{"a": [2]}']),
    ({"type": "string", "enum": ["a", 1, None]}, ['"a"'], ["1", "null"]),
    ({"enum": [1, 2, 3], "minimum": 2}, ["2", "3"], ["1"]),
    (
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "required": ["kids"]}}},
        ['{"kids": []}', '{"kids": [{"kids": [{"kids": []}]}]}'],
        ["{}", '{"kids": [{}]}'],
    ),
    ({"$ref": "#/$defs/n", "maximum": 3, "$defs": {"n": {"type": "integer"}}}, ["3", "-9"], ["4"]),
    ({"$ref": "#/anyOf/1", "anyOf": [{"type": "null"}, {"type": "boolean"}]}, ["true"], ["null"]),
    ({"type": "object", "properties": {"a": False, "b": True}}, ['{"b": 1}', "{}"], ['{"a": 1}']),
    (True, ["1", '{"a": []}'], []),
    (False, [], ["1", "{}"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=[json.dumps(c[0]) for c in CASES])
def test_exactly_what_conforms_gets_through(schema: Any, good: list[str], bad: list[str]) -> None:
    values = Values(schema)
    assert values.unenforced == []
    assert [text for text in good if not values.admit(text)] == []
    assert [text for text in bad if values.admit(text)] == []
    oracle = Draft202012Validator(schema)
    assert all(oracle.is_valid(json.loads(text)) for text in good)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "null"}}, ["$: not"]),
        ({"type": "array", "uniqueItems": True}, ["$: uniqueItems"]),
        ({"type": "integer", "multipleOf": 3}, ["$: multipleOf"]),
        ({"type": "string", "pattern": "^(?=a)b"}, ["$: pattern"]),
        ({"type": "string", "pattern": "a", "maxLength": 3}, ["$: minLength and maxLength beside pattern"]),
        ({"type": "string", "format": "ipv6"}, ["$: format"]),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ["$: oneOf"]),
        ({"properties": {"a": {"$ref": "https://example.org/x"}}}, ["$.a: $ref"]),
        ({"properties": {"a": {"items": {"contains": {}}}}}, ["$.a[]: contains"]),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, ["$: if", "$: then"]),
        ({"allOf": [{"type": "string", "pattern": "a"}, {"pattern": "b"}]}, ["$: pattern"]),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_named(schema: Any, named: list[str]) -> None:
    assert Values(schema).unenforced == named


def test_rules_name_what_they_do_not_follow() -> None:
    def rules(parameters: Any) -> CallRules:
        definition = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        return CallRules(read_tools([definition], Flavor.CHECKPOINT))

    loose = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 2}}}
    assert rules(loose).unenforced == ("f.parameters.a: multipleOf",)
    assert rules({"type": "object"}).unenforced == ()
    for impossible in (
        {"type": "array"},
        {"type": "object", "required": ['a"b'], "properties": {'a"b': {}}},
        {"allOf": [{"type": "object"}, {"type": "string"}]},
        {"allOf": [{"$ref": "#"}]},
        {"type": "object", "allOf": [{"anyOf": [{"minimum": n} for n in range(20)]}] * 3},
    ):
        with pytest.raises(ToolSchemaError):
            rules(impossible)


class Schemas:
    """Draws schemas, and values that are near to conforming."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    def schema(self, depth: int = 0) -> Any:
        draw = self.dice.choice
        kind = draw(
            (
                "integer",
                "number",
                "string",
                "array",
                "object",
                "null",
                "many",
                "choice",
                "enum",
                "all",
            )
        )
        if depth > 2 and kind in ("array", "object", "choice", "all"):
            kind = "integer"
        if kind in ("integer", "number"):
            return {
                "type": kind,
                **self.some(
                    minimum=self.bound,
                    maximum=self.bound,
                    exclusiveMinimum=self.bound,
                    exclusiveMaximum=self.bound,
                ),
            }
        if kind == "string":
            length = lambda: self.dice.randint(0, 3)  # noqa: E731
            pattern = lambda: draw(("^a", "b$", "^[ab]{1,2}$", "a|b", "^(ab)*$", "^[a-z]\\d?$"))  # noqa: E731
            bounds = draw(({"minLength": length, "maxLength": length}, {"pattern": pattern}))
            return {"type": kind, **self.some(**bounds)}
        if kind == "array":
            count = lambda: self.dice.randint(0, 3)  # noqa: E731
            return {
                "type": kind,
                **self.some(
                    items=lambda: self.schema(depth + 1),
                    prefixItems=lambda: [self.schema(depth + 1)],
                    minItems=count,
                    maxItems=count,
                ),
            }
        if kind == "object":
            names = self.dice.sample("abc", self.dice.randint(0, 3))
            found = {"type": kind, "properties": {name: self.schema(depth + 1) for name in names}}
            extra = lambda: draw((False, True, self.schema(depth + 1)))  # noqa: E731
            return {
                **found,
                **self.some(
                    required=lambda: self.dice.sample("abc", self.dice.randint(0, 2)),
                    additionalProperties=extra,
                    maxProperties=lambda: self.dice.randint(0, 3),
                ),
            }
        if kind == "many":
            return {"type": self.dice.sample(["integer", "string", "null", "boolean"], 2)}
        if kind in ("choice", "all"):
            key = "anyOf" if kind == "choice" else "allOf"
            return {key: [self.schema(depth + 1) for _ in range(2)]}
        return (
            {"enum": [draw((1, "a", None, True, [1], {"a": 1})) for _ in range(2)]}
            if kind == "enum"
            else {"type": kind}
        )

    def some(self, **makers: Any) -> dict[str, Any]:
        return {key: make() for key, make in makers.items() if self.dice.random() < 0.4}

    def bound(self) -> float:
        return self.dice.choice((-11, -2, -0.5, 0, 0.25, 1, 1.5, 3, 10, 12, 105))

    def value(self, depth: int = 0) -> Any:
        draw = self.dice.choice
        kind = self.dice.randrange(7 if depth < 3 else 5)
        if kind == 0:
            return draw((-11, -2, -1, 0, 1, 2, 3, 9, 10, 11, 104, 105, 106))
        if kind == 1:
            return draw((-0.5, 0.25, 0.3, 1.5, 2.75, -1.25, 10.01))
        if kind == 2:
            return draw(("", "a", "b", "ab", "abab", "ba", "a1", "é", "xa"))
        if kind in (3, 4):
            return draw((None, True, False))
        if kind == 5:
            return [self.value(depth + 1) for _ in range(self.dice.randint(0, 3))]
        return {name: self.value(depth + 1) for name in self.dice.sample("abcd", self.dice.randint(0, 3))}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**48))
def test_random_schemas_are_followed_both_ways(seed: int) -> None:
    dice = random.Random(seed)
    drawn = Schemas(dice)
    schema = drawn.schema()
    oracle, values = Draft202012Validator(schema), Values(schema)
    for _ in range(4):
        text = values.written(dice) if values.start else None
        if text is not None and not values.unenforced:
            assert oracle.is_valid(json.loads(text)), text
    if "properties" not in json.dumps(schema):
        for _ in range(12):
            value = drawn.value()
            if oracle.is_valid(value):
                assert values.admit(json.dumps(value, ensure_ascii=False)), value


PATTERNS = [
    "^abc$", "a+b*", "^(a|bc)?d$", "[^a-c]", "^\\d{3}-\\w+$", "^[\\s\\S]{2}$", "^a{2,3}$", "a.c",
    "^\\x41\\u0042$", "^(?:x|(?<n>y))+$", "^[\\]\\-a]$", "^\\$\\.$", "^$", "", "^a??b$", "^[+-]?\\d+$",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_read_as_the_engine_reads_them(pattern: str) -> None:
    rules = JsonRules()
    automaton = Automaton(rules)
    start = automaton.start([pattern_symbol(pattern, quoted=False)])
    engine = re.compile(
        pattern.replace("(?<n>", "(?P<n>").replace("$", r"\Z")
        if "\\$" not in pattern
        else r"^\$\.\Z",
        re.ASCII,
    )
    dice = random.Random(pattern)
    for _ in range(40):
        text = written(automaton, start, dice, 60)
        assert text is None or engine.search(text), text
    for _ in range(300):
        text = "".join(dice.choices("abcdxyAB-]$.3 1+\n", k=dice.randint(0, 6)))
        state = start
        for byte in text.encode():
            state = automaton.after_byte(state, byte)
        assert (() in state) == bool(engine.search(text)), text


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)", "(?!a)", "\\bx", "(a)\\1", "a(", "[b-a]", "x{3", "*", "a$b", "\\p{L}", "a)"],
)
def test_patterns_that_are_not_regular_are_refused(pattern: str) -> None:
    with pytest.raises(PatternNotRegular):
        pattern_symbol(pattern, quoted=True)
