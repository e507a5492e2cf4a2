"""As much of JSON Schema as deciding on repairs needs."""

from typing import Any

import pytest

from baleen.protocol.schema import Schema
from baleen.protocol.turn import RepairKind
from baleen.protocol.values import Value, read_value

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "next": {"$ref": "#"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, [1, 2.0, -5], [True, 1.5, "1", None]),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 2}, [0, 1.9], [-1, 2]),
        ({"type": ["string", "null"]}, ["x", None], [1, []]),
        ({"enum": ["a", 1]}, ["a", 1, 1.0], ["b", True]),
        ({"const": None}, [None], [0, False]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "abcd"]),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1}, [[None]], [[], [1]]),
        ({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, [["a", 1]], [[1]]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["x", None], [1]),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, [1.5], [1]),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, [3], [2, "x"]),
        ({"not": {"type": "null"}}, [0], [None]),
        (PERSON, [{"name": "a", "next": {"name": "b"}}], [{}, {"name": "a", "x": 1}, {"next": {}}]),
        (True, [1], []),
        (False, [], [1]),
    ],
)
def test_values_are_told_apart(schema: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not Schema(schema).validates(value)] == []
    assert [value for value in bad if Schema(schema).validates(value)] == []


@pytest.mark.parametrize(
    ("schema", "admits"),
    [
        ({}, True),
        ({"type": "string"}, True),
        ({"type": ["integer", "string"]}, True),
        ({"type": "integer"}, False),
        ({"enum": [1, 2]}, False),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, True),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, False),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, False),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}, False),
        ({"$ref": "#"}, True),
    ],
)
def test_schemas_tell_whether_they_admit_strings(schema: Any, admits: bool) -> None:
    assert Schema(schema).admits_strings() is admits


def test_a_schema_without_end_is_survived() -> None:
    endless = {"type": "array", "items": {"$ref": "#"}}
    value: list[Any] = []
    for _ in range(900):
        value = [value]
    assert not Schema(endless).validates(value)
    assert Schema(endless).validates([[[]]])


@pytest.mark.parametrize(
    ("raw", "is_string", "schema", "value"),
    [
        ("5", True, {"type": "integer"}, Value("5", RepairKind.STRING_TO_JSON)),
        ("5", True, {"type": ["integer", "string"]}, Value('"5"')),
        ("True", True, {"type": "boolean"}, Value("true", RepairKind.LITERAL)),
        ("None", False, {"type": "null"}, Value("null", RepairKind.LITERAL)),
        ('"5"', False, {"type": "integer"}, Value("5", RepairKind.STRING_TO_JSON)),
        ('"x"', False, {"type": "string"}, Value('"x"')),
        ("1.0", False, {"type": "integer"}, Value("1.0")),
        ("2.5", False, {"type": "integer"}, Value("2.5")),
        ("1" * 5000, False, None, Value("1" * 5000)),
        ("[" * 5000, False, None, Value('"' + "[" * 5000 + '"', RepairKind.INVALID_JSON)),
        ("NaN", False, {"type": "number"}, Value('"NaN"', RepairKind.INVALID_JSON)),
        ("x", None, None, Value('"x"', RepairKind.MISSING_ATTRIBUTE)),
    ],
)
def test_values_are_converted_only_where_the_result_validates(
    raw: str, is_string: bool | None, schema: Any, value: Value
) -> None:
    typed = Schema(schema) if schema is not None else None
    assert read_value(raw, is_string, typed, repair=True) == value
