"""Tool definitions: what a request declares, what the model is shown, what the parser types by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baleen.protocol import jsontext
from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.revision import Flavor


@dataclass(frozen=True, slots=True)
class Tool:
    """One declared tool.

    ``line`` is the JSON line of the Tools block; ``parameters`` the JSON schema of its arguments.
    """

    name: str
    parameters: Mapping[str, Any]
    line: str
    strict: bool = False


def read_tools(definitions: Sequence[Any] | None, flavor: Flavor) -> list[Tool]:
    """Read Chat Completions tool definitions.

    Raises:
        ToolSchemaError: a definition that cannot be rendered; names its position and field.
    """
    if not definitions:
        return []
    read = _api_tool if flavor is Flavor.API else _checkpoint_tool
    return [read(position, definition) for position, definition in enumerate(definitions)]


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


def _name_of(position: int, function: Mapping[str, Any]) -> str:
    name = function.get("name")
    if not isinstance(name, str):
        raise ToolSchemaError(f"tools[{position}].function.name: missing field `name`")
    return name


def _render(position: int, value: Any, flavor: Flavor) -> str:
    dumps = jsontext.dumps_api if flavor is Flavor.API else jsontext.dumps
    try:
        return dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolSchemaError(
            f"tools[{position}].function is no JSON value: {error}",
            remedy="pass plain dicts, lists, strings, numbers, booleans and None",
        ) from error


def _checkpoint_tool(position: int, definition: Any) -> Tool:
    function = _function_of(position, definition)
    parameters = function.get("parameters")
    return Tool(
        name=_name_of(position, function),
        parameters=parameters if isinstance(parameters, Mapping) else {},
        line=_render(position, function, Flavor.CHECKPOINT),
        strict=function.get("strict") is True,
    )


def _api_tool(position: int, definition: Any) -> Tool:
    function = _function_of(position, definition)
    name = _name_of(position, function)
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {}
    strict = function.get("strict") is True
    if strict:
        parameters = close_objects(parameters)
    shown = {
        "name": name,
        "description": function.get("description") or "",
        "parameters": parameters,
    }
    return Tool(
        name=name,
        parameters=parameters if isinstance(parameters, Mapping) else {},
        line=_render(position, shown, Flavor.API),
        strict=strict,
    )


def close_objects(schema: Any) -> Any:
    """The schema of a strict tool: every object closed, every property required.

    Raises:
        ToolSchemaError: an object leaves a property optional.
    """
    if isinstance(schema, Mapping):
        closed = {key: close_objects(value) for key, value in schema.items()}
        properties = closed.get("properties")
        if closed.get("type") == "object" and isinstance(properties, Mapping):
            required = closed.get("required")
            if required is not None and set(required) != set(properties):
                raise ToolSchemaError("Required properties must match all properties in the object")
            closed["additionalProperties"] = False
            closed["required"] = list(properties)
        return closed
    if isinstance(schema, list):
        return [close_objects(item) for item in schema]
    return schema
