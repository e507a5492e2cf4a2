"""Running the commands of one call, each at most once, in a box or out of a box's log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from baleen.agent.records import Call
from baleen.agent.tools import CommandResult
from baleen.errors import SandboxError

if TYPE_CHECKING:
    from baleen.sandbox import Sandbox
    from baleen.sandbox.spec import RunResult


class InDoubt(Exception):
    """A command was dispatched and nobody can say what became of it."""


class NeverRan(Exception):
    """The log shows that a command was never begun, so it may be run now."""


def command_key(call: Call, part: str) -> str:
    """The key of one command of a call."""
    return f"{call.key}/{part}"


class KeyedCommands:
    """Runs commands in a living box, which recognises those that it has run before."""

    def __init__(self, box: Sandbox, call: Call, cwd: str) -> None:
        self._box = box
        self._call = call
        self._cwd = cwd
        self.results: list[CommandResult] = []

    async def run(
        self, argv: Sequence[str], *, part: str, stdin: bytes | None = None
    ) -> CommandResult:
        """Run `argv`, or hear what it came to when it was run before.

        Raises:
            InDoubt: it was started, and the box cannot say how it ended.
            SandboxError: nothing was run.
        """
        from baleen.sandbox.errors import InDoubtError

        try:
            ran = await self._box.run(
                list(argv),
                timeout_s=self._call.timeout_s,
                cwd=self._cwd,
                stdin=stdin,
                key=command_key(self._call, part),
            )
        except InDoubtError as error:
            raise InDoubt from error
        result = _result(ran)
        self.results.append(result)
        return result


class LoggedCommands:
    """Answers for the commands of a box that is gone, from the log that it left."""

    def __init__(self, log: Path, call: Call) -> None:
        self._log = log
        self._call = call
        self.results: list[CommandResult] = []

    async def run(
        self, argv: Sequence[str], *, part: str, stdin: bytes | None = None
    ) -> CommandResult:
        """The recorded result of the command that ran under this key.

        Raises:
            InDoubt: it was begun and has no result, or the log cannot be read.
            NeverRan: it was not begun.
        """
        from baleen.sandbox import recall

        try:
            ran = recall(self._log, command_key(self._call, part))
        except SandboxError as error:
            raise InDoubt from error
        if ran is None:
            raise NeverRan
        self.results.append(_result(ran))
        return self.results[-1]


def _result(ran: RunResult) -> CommandResult:
    return CommandResult(
        exit_code=ran.exit_code,
        stdout=ran.stdout,
        stderr=ran.stderr,
        duration_s=ran.duration_s,
        timed_out=ran.timed_out,
        truncated=ran.truncated,
        replayed=ran.replayed,
    )
