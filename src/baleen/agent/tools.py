"""What a model can do: each tool turns the arguments of a call into commands in the box.

A tool is deterministic given its arguments and the results of its commands, because a resumed run
goes through it again and must ask for the same commands under the same keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from baleen.agent.base import ToolCall
from baleen.agent.observation import render


class ToolInputError(Exception):
    """The call cannot be run as it stands; the text is shown to the model."""


@dataclass(frozen=True)
class CommandResult:
    """What a command in the box came to."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    duration_s: float = 0.0
    timed_out: bool = False
    truncated: bool = False
    replayed: bool = False


class Commands(Protocol):
    """Runs the commands of one call, each once, however often it is asked."""

    async def run(
        self, argv: Sequence[str], *, part: str, stdin: bytes | None = None
    ) -> CommandResult:
        """Run `argv`, or return the recorded result; `part` tells the commands of a call apart."""
        ...


@dataclass(frozen=True)
class Observation:
    """What the model is shown, and the exit code behind it."""

    text: str
    exit_code: int


class Tool(Protocol):
    """One tool: a schema for the model, and what it does."""

    schema: Mapping[str, Any]

    async def execute(
        self, arguments: Mapping[str, Any], commands: Commands, limit_chars: int
    ) -> Observation:
        """Do it.

        Raises:
            ToolInputError: the arguments do not say what to do.
        """
        ...


class Bash:
    """Runs a line of shell."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema

    async def execute(
        self, arguments: Mapping[str, Any], commands: Commands, limit_chars: int
    ) -> Observation:
        """Run `arguments["command"]` with bash and show both streams."""
        command = text_argument(arguments, "command")
        result = await commands.run(["bash", "-c", command], part="run")
        return shown(result, limit_chars)


class Toolbox:
    """The tools of one run, by name."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.schema["function"]["name"]: tool for tool in tools}

    @property
    def schemas(self) -> list[Mapping[str, Any]]:
        """The tools as a request carries them."""
        return [tool.schema for tool in self._tools.values()]

    def resolve(self, call: ToolCall) -> tuple[Tool, Mapping[str, Any]]:
        """Find what a call asks for.

        Raises:
            ToolInputError: no such tool, or arguments that are not an object with its keys.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(sorted(self._tools))
            raise ToolInputError(f"there is no tool {call.name!r}; the tools are: {known}")
        if call.status == "malformed":
            raise ToolInputError("the arguments could not be read")
        try:
            arguments = json.loads(call.arguments)
        except ValueError as error:
            raise ToolInputError(f"the arguments are not JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise ToolInputError("the arguments are not an object")
        _check_keys(arguments, tool.schema["function"]["parameters"])
        return tool, arguments


def text_argument(arguments: Mapping[str, Any], name: str) -> str:
    """A string argument that a command line can carry."""
    value = arguments.get(name)
    if not isinstance(value, str):
        raise ToolInputError(f"{name!r} must be a string")
    if "\x00" in value:
        raise ToolInputError(f"{name!r} holds a NUL character, which no command can take")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ToolInputError(f"{name!r} holds half a surrogate pair") from None
    return value


def shown(result: CommandResult, limit_chars: int) -> Observation:
    """The observation that a command's result makes."""
    text = render(
        result.exit_code,
        result.stdout,
        result.stderr,
        timed_out=result.timed_out,
        truncated=result.truncated,
        limit_chars=limit_chars,
    )
    return Observation(text, result.exit_code)


def _check_keys(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    missing = [name for name in parameters["required"] if name not in arguments]
    if missing:
        raise ToolInputError(f"missing: {', '.join(missing)}")
    unknown = sorted(arguments.keys() - parameters["properties"].keys())
    if unknown:
        raise ToolInputError(f"unknown: {', '.join(unknown)}")
