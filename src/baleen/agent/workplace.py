"""The sandbox of a run: created or found again, and every command in it run once.

A command's key is made of run, turn, call and arguments, so the sandbox recognises a command that a
dead process had already sent: it answers with the recorded result, or waits for the running
command. What it cannot know, or what it took with it when it vanished, is in doubt: reported, never
run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from baleen.agent import records
from baleen.agent.base import ToolCall, Watch
from baleen.agent.config import RunConfig
from baleen.agent.decide import canonical_arguments
from baleen.agent.journal import Journal
from baleen.agent.prompt import WORKDIR
from baleen.agent.run_folder import RunFolder
from baleen.agent.tools import CommandResult
from baleen.errors import SandboxError

if TYPE_CHECKING:
    from baleen.sandbox import Sandbox


class InDoubt(Exception):
    """A command was dispatched and nobody can say what became of it."""


class Workplace:
    """Holds the box in which a run's commands run; `open` before use, `close` after."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, journal: Journal, watch: Watch
    ) -> None:
        self._config = config
        self._folder = folder
        self._journal = journal
        self._watch = watch
        self._box: Sandbox | None = None

    async def open(self) -> None:
        """Find the run's last box again, or make one.

        Raises:
            SandboxError: this host cannot make one; cause and remedy are in the message.
        """
        if self._journal.history.boxes:
            await self._attach(self._journal.history.boxes[-1].box_id)
        if self._box is None:
            await self._create()

    async def close(self) -> None:
        """End the box and everything in it; safe to call twice."""
        box, self._box = self._box, None
        if box is not None:
            with suppress(SandboxError):  # it may be gone already, which is what is wanted
                await box.close()

    @property
    def box_id(self) -> str:
        """Name of the current box."""
        assert self._box is not None, "open() comes first"
        return str(self._box.id)

    def commands(self, call: records.Call) -> KeyedCommands:
        """The commands of one recorded call.

        Raises:
            InDoubt: the call went to a box that is no longer there.
        """
        if call.box_id != self.box_id:
            raise InDoubt
        assert self._box is not None, "open() comes first"
        return KeyedCommands(self._box, call, self._cwd)

    async def replace(self) -> None:
        """Make a new box because the old one is lost."""
        await self.close()
        await self._create()

    @property
    def _cwd(self) -> str:
        return WORKDIR if self._config.mount is not None else "/tmp"

    async def _attach(self, box_id: str) -> None:
        from baleen.sandbox import Sandbox

        try:
            self._box = await Sandbox.attach(box_id)
        except SandboxError as error:
            self._watch.note(f"sandbox {box_id} is gone ({error.message}); starting another")

    async def _create(self) -> None:
        from baleen.sandbox import Sandbox

        number = len(self._journal.history.boxes)
        log = self._folder.sandbox_log(number)
        mounts = []
        if self._config.mount is not None:
            mounts = [(self._config.mount, WORKDIR, self._config.mount_mode)]
        self._box = await Sandbox.create(
            backend=self._config.backend,
            image=self._config.image,
            mounts=mounts,
            network="none",
            job=self._journal.history.run_id,
            trajectory=log,
        )
        box = records.Box(box_id=str(self._box.id), log=log.name, at=records.now())
        self._journal.write(box, durable=True)


class KeyedCommands:
    """Runs the commands of one call under keys derived from the call's own."""

    def __init__(self, box: Sandbox, call: records.Call, cwd: str) -> None:
        self._box = box
        self._call = call
        self._cwd = cwd
        self.results: list[CommandResult] = []

    async def run(
        self, argv: Sequence[str], *, part: str, stdin: bytes | None = None
    ) -> CommandResult:
        """Run `argv` in the box, or hear what it came to when it was run before.

        Raises:
            InDoubt: the sandbox knows that it was started, and not how it ended.
            SandboxError: the sandbox failed.
        """
        from baleen.sandbox.errors import InDoubtError

        try:
            ran = await self._box.run(
                list(argv),
                timeout_s=self._call.timeout_s,
                cwd=self._cwd,
                stdin=stdin,
                key=f"{self._call.key}/{part}",
            )
        except InDoubtError as error:
            raise InDoubt from error
        result = CommandResult(
            exit_code=ran.exit_code,
            stdout=ran.stdout,
            stderr=ran.stderr,
            duration_s=ran.duration_s,
            timed_out=ran.timed_out,
            truncated=ran.truncated,
            replayed=ran.replayed,
        )
        self.results.append(result)
        return result


def call_key(run_id: str, turn: int, index: int, call: ToolCall) -> str:
    """The name under which a call is dispatched, today and after any restart."""
    digest = hashlib.sha256(f"{call.name}\n{canonical_arguments(call)}".encode("utf-8", "replace"))
    return f"{run_id}/{turn}/{index}/{digest.hexdigest()}"
