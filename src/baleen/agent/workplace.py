"""The sandbox of a run: created or found again, and every command in it run once.

A command's key is made of run, turn, call and arguments, so a living sandbox recognises a command
that a dead process had sent: it answers with the recorded result, or waits for the running command.
Of a sandbox that is gone its log remains in the run folder and says the same of every key: ended,
never begun, or begun and lost. Only the last is in doubt, and that is reported, never run again.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from baleen.agent import records
from baleen.agent.base import ToolCall, Watch
from baleen.agent.commands import KeyedCommands, LoggedCommands
from baleen.agent.config import RunConfig
from baleen.agent.decide import canonical_arguments
from baleen.agent.journal import Journal
from baleen.agent.prompt import WORKDIR
from baleen.agent.run_folder import RunFolder
from baleen.errors import SandboxError

if TYPE_CHECKING:
    from baleen.sandbox import Sandbox

_MAX_BOXES = 8
"""A run that has lost so many sandboxes will lose the next one too."""


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
        await self._adopt_orphan()
        if self._box is None and self._journal.history.boxes:
            await self._attach(self._journal.history.boxes[-1].box_id)
        if self._box is None:
            await self._create()

    async def clear(self) -> None:
        """End the box that a dead process may have left behind."""
        if self._journal.history.boxes:
            await self._attach(self._journal.history.boxes[-1].box_id)
            await self.close()

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

    def commands(self, call: records.Call) -> KeyedCommands | LoggedCommands:
        """The commands of one recorded call: in the box, or from the log of a box that is gone."""
        assert self._box is not None, "open() comes first"
        if call.box_id == self.box_id:
            return KeyedCommands(self._box, call, self._cwd)
        log = next(box.log for box in self._journal.history.boxes if box.box_id == call.box_id)
        return LoggedCommands(self._folder.path / log, call)

    async def replace(self, error: SandboxError) -> None:
        """Make a new box because the old one is gone.

        Raises:
            SandboxError: the given one, when too many have gone already.
        """
        if len(self._journal.history.boxes) >= _MAX_BOXES:
            raise error
        self._watch.note(f"{error.message}; starting another sandbox")
        await self.close()
        await self._create()

    @property
    def _cwd(self) -> str:
        return WORKDIR if self._config.mount is not None else "/tmp"

    async def _attach(self, box_id: str) -> None:
        from baleen.sandbox import Sandbox
        from baleen.sandbox.errors import BoxGoneError

        try:
            self._box = await Sandbox.attach(box_id)
        except BoxGoneError as error:
            self._watch.note(error.message)

    async def _adopt_orphan(self) -> None:
        """Take over a box whose maker died before it could record it; its log names it."""
        from baleen.sandbox.trajectory import read

        number = len(self._journal.history.boxes)
        log = self._folder.sandbox_log(number)
        with suppress(SandboxError):  # no log, or its maker died while writing the first record
            first = next(read(log), None)
            if first is not None:
                await self._attach(first.payload["box"])
        if self._box is not None:
            self._record_box(log.name, 0.0)

    async def _create(self) -> None:
        from baleen.sandbox import Sandbox

        number = len(self._journal.history.boxes)
        while (log := self._folder.sandbox_log(number)).exists():
            number += 1
        mounts = []
        if self._config.mount is not None:
            mounts = [(self._config.mount, WORKDIR, self._config.mount_mode)]
        await Sandbox.list()  # starts the daemon where none runs: that is not the box's own time
        started = time.monotonic()
        self._box = await Sandbox.create(
            backend=self._config.backend,
            image=self._config.image,
            mounts=mounts,
            network="none",
            job=self._journal.history.run_id,
            trajectory=log,
        )
        self._record_box(log.name, time.monotonic() - started)

    def _record_box(self, log: str, create_s: float) -> None:
        box = records.Box(self.box_id, log, create_s, records.now())
        self._journal.write(box, durable=True)


def call_key(run_id: str, turn: int, index: int, call: ToolCall) -> str:
    """The name under which a call is dispatched, today and after any restart."""
    digest = hashlib.sha256(f"{call.name}\n{canonical_arguments(call)}".encode("utf-8", "replace"))
    return f"{run_id}/{turn}/{index}/{digest.hexdigest()}"
