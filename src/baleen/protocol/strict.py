"""The schema of a strict tool, as the API shows it to the model.

The API reads such a schema into a small type system and prints it back: fields in a fixed order,
unknown keywords gone, every object closed, every property required. What does not fit the type
system is refused. Two of its oddities are kept because the model sees them: definitions survive
under ``$def`` only, and a reference loses everything beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from baleen.protocol.errors import ToolSchemaError

_SIMPLE: Final = ("string", "number", "integer", "boolean", "null")
_FORMATS: Final = ("email", "hostname", "ipv4", "ipv6", "uuid")
_BOUNDS: Final = (
    "const",
    "default",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
)


def close_schema(schema: Any) -> dict[str, Any]:
    """Close a strict tool's parameters.

    Raises:
        ToolSchemaError: the schema does not fit the type system.
    """
    if schema is None:
        schema = {"type": "object"}
    closed = _closed(schema, is_top=True)
    if closed.get("type") != "object":
        raise ToolSchemaError("The top level of the function parameters schema must be an object.")
    return closed


def _closed(schema: Any, *, is_top: bool = False) -> dict[str, Any]:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind is not None:
        return _closed_by_type(schema, kind, is_top=is_top)
    if isinstance(schema, Mapping) and schema.get("anyOf") is not None:
        options = [_closed(option) for option in _list(schema["anyOf"])]
        return {"anyOf": options, **_description(schema)}
    if isinstance(schema, Mapping) and schema.get("$ref") is not None:
        return {"$ref": schema["$ref"]}
    raise _misfit("one of `type`, `anyOf`, `$ref` field is required")


def _closed_by_type(schema: Mapping[str, Any], kind: Any, *, is_top: bool) -> dict[str, Any]:
    if isinstance(kind, list):
        for name in kind:
            if name not in _SIMPLE:
                raise _misfit(f"field `type`: unknown variant `{name}`, expected one of {_SIMPLE}")
        return {"type": kind, **_description(schema)}
    if kind == "object":
        return _closed_object(schema, is_top=is_top)
    close = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if close is None:
        raise _misfit(f"unknown variant `{kind}`, expected one of `object`, `array`, {_SIMPLE}")
    return {"type": kind, **close(schema)}


def _closed_object(schema: Mapping[str, Any], *, is_top: bool) -> dict[str, Any]:
    properties = _mapping(schema.get("properties"))
    if not properties and not is_top:
        raise ToolSchemaError("An object with no properties is not allowed.")
    extra = schema.get("additionalProperties")
    if extra is True:
        raise ToolSchemaError("additionalProperties should not be true")
    if extra not in (None, False):
        raise _misfit("invalid type: map, expected a boolean")
    _check_required(properties, schema.get("required"))
    closed: dict[str, Any] = {
        "type": "object",
        "properties": {name: _closed(member) for name, member in properties.items()},
        "additionalProperties": False,
        "required": list(properties),
        **_description(schema),
    }
    definitions = schema.get("$def")
    if definitions is not None:
        closed["$def"] = {name: _closed(member) for name, member in _mapping(definitions).items()}
    return closed


def _check_required(properties: Mapping[str, Any], required: Any) -> None:
    if required is None:
        return
    names = _list(required)
    for name in names:
        if not isinstance(name, str) or name not in properties:
            raise ToolSchemaError(f"Required property '{name}' not found in object")
    if set(names) != set(properties):
        raise ToolSchemaError("Required properties must match all properties in the object")


def _closed_string(schema: Mapping[str, Any]) -> dict[str, Any]:
    form = schema.get("format")
    if form is not None and not (isinstance(form, str) and form in _FORMATS):
        raise _misfit(f"unknown variant `{form}`, expected one of {_FORMATS}")
    _check_values(dict(enumerate(_list(schema.get("enum")))), str, "a string")
    return {**_description(schema), **_present(schema, "pattern", "format", "enum")}


def _closed_number(schema: Mapping[str, Any]) -> dict[str, Any]:
    _check_values(_present(schema, *_BOUNDS), (int, float), "a JSON number")
    return {**_description(schema), **_present(schema, *_BOUNDS)}


def _closed_integer(schema: Mapping[str, Any]) -> dict[str, Any]:
    _check_values(_present(schema, *_BOUNDS), int, "i64")
    return {**_description(schema), **_present(schema, *_BOUNDS)}


def _closed_array(schema: Mapping[str, Any]) -> dict[str, Any]:
    if "items" not in schema:
        raise _misfit("missing field `items`")
    return {"items": _closed(schema["items"]), **_description(schema)}


def _description(schema: Mapping[str, Any]) -> dict[str, Any]:
    return _present(schema, "description")


def _present(schema: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: schema[key] for key in keys if schema.get(key) is not None}


def _check_values(values: Mapping[Any, Any], kind: type | tuple[type, ...], name: str) -> None:
    for value in values.values():
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _misfit(f"invalid type: {value!r}, expected {name}")


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _misfit(f"invalid type: {type(value).__name__}, expected a sequence")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _misfit(f"invalid type: {type(value).__name__}, expected a map")
    return value


def _misfit(reason: str) -> ToolSchemaError:
    return ToolSchemaError(f"Invalid tool parameters schema : {reason}")


_BY_TYPE: Final[dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "string": _closed_string,
    "number": _closed_number,
    "integer": _closed_integer,
    "boolean": _description,
    "null": _description,
    "array": _closed_array,
}
