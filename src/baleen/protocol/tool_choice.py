"""What a request says about calling tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from baleen.protocol.errors import MessageError, ToolSchemaError
from baleen.protocol.tools import Tool


class ChoiceMode(StrEnum):
    """How free the model is."""

    AUTO = "auto"
    """To call or not, whatever it likes."""
    NONE = "none"
    """Tools are not shown, and calls are not reported."""
    REQUIRED = "required"
    """At least one call, to any tool."""
    NAMED = "named"
    """A call to one tool."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """A choice; ``name`` is the tool of a named one."""

    mode: ChoiceMode = ChoiceMode.AUTO
    name: str = ""

    @property
    def forces(self) -> bool:
        """Whether the model has to call."""
        return self.mode in (ChoiceMode.REQUIRED, ChoiceMode.NAMED)

    def allows(self, tool: Tool) -> bool:
        """Whether this tool may be called."""
        return self.mode is not ChoiceMode.NAMED or tool.name == self.name


def read_tool_choice(given: Any, declared: Sequence[Tool]) -> ToolChoice:
    """Read a Chat Completions tool choice; without tools there is nothing to choose.

    Raises:
        MessageError: it is not one.
        ToolSchemaError: it names a tool that is not declared.
    """
    if given is None or given == "auto":
        return ToolChoice()
    if given == "none":
        return ToolChoice(ChoiceMode.NONE)
    if given == "required":
        return ToolChoice(ChoiceMode.REQUIRED) if declared else ToolChoice()
    function = given.get("function") if isinstance(given, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise MessageError(
            "expected one of `none`, `auto`, `required` or a tool", field="tool_choice"
        )
    if not declared:
        return ToolChoice()
    if name not in [tool.name for tool in declared]:
        raise ToolSchemaError(
            f"Invalid value for 'tool_call': no function named '{name}' was specified in the"
            " 'tools' parameter."
        )
    return ToolChoice(ChoiceMode.NAMED, name)
