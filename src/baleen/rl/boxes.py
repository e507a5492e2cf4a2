"""Real sandboxes for many episodes at once: a box per episode, made at its first command."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from baleen.agent.observation import render
from baleen.agent.prompt import NANO, WORKDIR
from baleen.errors import SandboxError
from baleen.rl.tasks import Task
from baleen.sandbox import Sandbox

COMMAND_TIMEOUT_S = 10.0
BOX_MEMORY_MB = 128
CONCURRENT_BOXES = 32
"""Boxes that start or run a command at the same time; more would only wait for each other."""


class TaskBoxes:
    """Folders and boxes of one batch of tasks; `run` executes one command per episode.

    An episode never sees another's folder or box. Failures of the sandbox come back as errors,
    never as text that a model could read.
    """

    def __init__(self, tasks: Sequence[Task], job: str) -> None:
        self.tasks, self.job = tasks, job
        self._boxes: dict[int, Sandbox] = {}
        self._root: tempfile.TemporaryDirectory[str] | None = None
        self._slots = asyncio.Semaphore(CONCURRENT_BOXES)

    async def __aenter__(self) -> TaskBoxes:
        self._root = tempfile.TemporaryDirectory(prefix="baleen-tasks-")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        boxes = list(self._boxes.values())
        self._boxes.clear()
        await asyncio.gather(*(box.close() for box in boxes), return_exceptions=True)
        if self._root is not None:
            self._root.cleanup()

    async def run(self, commands: dict[int, str]) -> dict[int, str | SandboxError]:
        """Runs one command in each named episode's box; what the model is shown, or the failure."""
        results = await asyncio.gather(*(self._run(n, line) for n, line in commands.items()))
        return dict(zip(commands, results, strict=True))

    async def _run(self, number: int, command: str) -> str | SandboxError:
        async with self._slots:
            try:
                box = await self._box(number)
                done = await box.run(
                    ["bash", "-c", command],
                    timeout_s=COMMAND_TIMEOUT_S,
                    cwd=WORKDIR if self.tasks[number].files else "/tmp",
                )
            except SandboxError as error:
                return error
        return render(
            done.exit_code,
            done.stdout,
            done.stderr,
            timed_out=done.timed_out,
            truncated=done.truncated,
            limit_chars=NANO.observation_limit_chars,
        )

    async def _box(self, number: int) -> Sandbox:
        if number not in self._boxes:
            folder = self._folder(number)
            self._boxes[number] = await Sandbox.create(
                mounts=[(folder, WORKDIR, "ro")] if folder else [],
                memory_mb=BOX_MEMORY_MB,
                job=self.job,
            )
        return self._boxes[number]

    def _folder(self, number: int) -> Path | None:
        """Writes the task's files; None if it has none."""
        files = self.tasks[number].files
        if not files:
            return None
        assert self._root is not None, "enter the context first"
        folder = Path(self._root.name) / str(number)
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        return folder
