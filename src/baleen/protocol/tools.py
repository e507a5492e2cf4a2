"""Tool definitions: what a request declares, what the model is shown, what the parser types by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from baleen.protocol import jsontext
from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.revision import Flavor
from baleen.protocol.strict import close_schema

_NAME: Final = re.compile("[a-zA-Z0-9_-]+")


Dumps = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Tool:
    """One declared tool.

    ``line`` is the JSON line of the Tools block; ``parameters`` the JSON schema of its arguments.
    """

    name: str
    parameters: Mapping[str, Any]
    line: str
    strict: bool = False


def read_tools(
    definitions: Sequence[Any] | None,
    flavor: Flavor,
    dumps: Dumps = jsontext.dumps,
    *,
    closes: bool = True,
) -> list[Tool]:
    """Read Chat Completions tool definitions; ``dumps`` prints them for the model.

    ``closes`` False leaves the schemas of strict tools open, for a request that shows no tools.

    Raises:
        ToolSchemaError: a definition that cannot be rendered; names its position and field.
    """
    if not definitions:
        return []
    if not isinstance(definitions, list | tuple):
        raise ToolSchemaError("tools must be a list")
    if flavor is Flavor.CHECKPOINT:
        return [_checkpoint_tool(place, given, dumps) for place, given in enumerate(definitions)]
    return [
        _api_tool(place, given, dumps, closes=closes) for place, given in enumerate(definitions)
    ]


def _function_of(position: int, definition: Any) -> Mapping[str, Any]:
    if not isinstance(definition, Mapping):
        raise ToolSchemaError(
            f"tools[{position}] is a {type(definition).__name__}, not an object",
            remedy='write {"type": "function", "function": {"name": ..., "parameters": ...}}',
        )
    function = definition.get("function")
    if not isinstance(function, Mapping):
        raise ToolSchemaError(
            f"tools[{position}].function: missing field `function`",
            remedy='write {"type": "function", "function": {"name": ..., "parameters": ...}}',
        )
    return function


def declared(definitions: Sequence[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and function of each Chat Completions definition, for readers of outputs.

    Raises:
        ToolSchemaError: what is given is no list of definitions, or one has no function or name.
    """
    if not isinstance(definitions, list | tuple):
        raise ToolSchemaError(
            f"tools is a {type(definitions).__name__}, not a list of definitions",
            remedy='pass [{"type": "function", "function": {"name": ..., "parameters": ...}}]',
        )
    for position, definition in enumerate(definitions):
        function = _function_of(position, definition)
        yield _name_of(position, function), function


def _name_of(position: int, function: Mapping[str, Any]) -> str:
    name = function.get("name")
    if not isinstance(name, str):
        raise ToolSchemaError(f"tools[{position}].function.name: missing field `name`")
    return name


def _render(position: int, value: Any, dumps: Dumps) -> str:
    try:
        return dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolSchemaError(
            f"tools[{position}].function is no JSON value: {error}",
            remedy="pass plain dicts, lists, strings, numbers, booleans and None",
        ) from error


def _checkpoint_tool(position: int, definition: Any, dumps: Dumps) -> Tool:
    function = _function_of(position, definition)
    parameters = function.get("parameters")
    return Tool(
        name=_name_of(position, function),
        parameters=parameters if isinstance(parameters, Mapping) else {},
        line=_render(position, function, dumps),
        strict=function.get("strict") is True,
    )


def _api_tool(position: int, definition: Any, dumps: Dumps, *, closes: bool) -> Tool:
    function = _function_of(position, definition)
    if definition.get("type") != "function":
        kind = definition.get("type")
        reason = (
            f"unknown variant `{kind}`, expected `function`" if kind else "missing field `type`"
        )
        raise ToolSchemaError(f"tools[{position}]: {reason}")
    name = _name_of(position, function)
    _check_name(position, name)
    strict = function.get("strict") is True
    given = function.get("parameters")
    parameters = close_schema(given) if strict and closes else _checked_parameters(name, given)
    shown = {
        "name": name,
        "description": _description_of(position, function),
        "parameters": parameters,
    }
    return Tool(name, parameters, _render(position, shown, dumps), strict)


def _check_name(position: int, name: str) -> None:
    where = f"Invalid 'tools[{position}].function.name'"
    if not name:
        raise ToolSchemaError(
            f"{where}: empty string. Expected a string with minimum length 1, but got an empty"
            " string instead."
        )
    if _NAME.fullmatch(name) is None:
        raise ToolSchemaError(
            f"{where}: string does not match pattern. Expected a string that matches the pattern"
            f" '^{_NAME.pattern}$'."
        )


def _description_of(position: int, function: Mapping[str, Any]) -> str:
    description = function.get("description")
    if description is None or isinstance(description, str):
        return description or ""
    raise ToolSchemaError(f"tools[{position}].function.description must be a string")


def _checked_parameters(name: str, given: Any) -> Mapping[str, Any]:
    if given is None:
        return {}
    reason = _fault_of(given)
    if reason is not None:
        raise ToolSchemaError(f"Invalid schema for function '{name}': {reason}")
    parameters: Mapping[str, Any] = given
    return parameters


def _fault_of(schema: Any) -> str | None:
    if isinstance(schema, bool) or (isinstance(schema, Mapping) and schema.get("type") != "object"):
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        kind = f'"{kind}"' if isinstance(kind, str) else "null"
        return f"""schema must be a JSON Schema of 'type: "object"', got 'type: {kind}'."""
    if not isinstance(schema, Mapping):
        return f'{jsontext.dumps(schema)} is not of types "boolean", "object"'
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        return f'{jsontext.dumps(properties)} is not of type "object"'
    return None
