"""One attempt at a run, in a process of its own that can be killed at a chosen byte.

The scripted model and the kill are the test's; loop, log and sandbox are real.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growth import kill_when_grown
from scripted_engine import ScriptedEngine

from baleen.agent.base import Endpoint, Watch
from baleen.agent.config import RunConfig
from baleen.agent.local import LocalEndpoint
from baleen.agent.prompt import Prompt
from baleen.agent.run_folder import RunFolder
from baleen.agent.runner import resume, start
from baleen.agent.wal import Wal, frame

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["attempt", "baleen.engine", "baleen.sandbox", "msgpack"])


@dataclass(frozen=True)
class Kill:
    """Where a process kills itself: at the nth record of a kind that it appends."""

    kind: str
    """`step` means any kind but `tokens` and `resumed`."""
    number: int
    when: str
    """In the middle of the record (`torn`), `before` it or `after` it."""

    def concerns(self, kind: str) -> bool:
        return kind == self.kind or (self.kind == "step" and kind not in ("tokens", "resumed"))


@dataclass(frozen=True)
class Attempt:
    """Everything a process needs to begin or to continue a run."""

    folder: Path
    home: Path
    turns: tuple[str, ...]
    config: RunConfig
    kill: Kill | None = None
    pause_s: float = 0.0

    def start(self) -> Any:
        """Begin working in a new process."""
        process = FORKS.Process(target=_work, args=(self,))
        process.start()
        return process

    def finish(self) -> int:
        """Work in a new process; returns its exit code, -9 for a kill."""
        process = self.start()
        process.join(60)
        assert process.exitcode is not None, "the attempt hangs"
        return int(process.exitcode)

    def work_until(self, num_bytes: int) -> bool:
        """Work in a new process and kill it when its log has grown by so many bytes.

        Returns:
            Whether it had ended before.
        """
        process = self.start()
        kill_when_grown(process, self.folder / "wal", num_bytes)
        process.join()
        return bool(process.exitcode == 0)

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return found


def _work(attempt: Attempt) -> None:
    os.environ["BALEEN_HOME"] = str(attempt.home)
    if attempt.kill is not None:
        _arm(attempt.kill)
    asyncio.run(_run(attempt))


async def _run(attempt: Attempt) -> None:
    async def open_endpoint(config: RunConfig, prompt: Prompt) -> Endpoint:
        engine: Any = ScriptedEngine(attempt.turns, pause_s=attempt.pause_s)
        return LocalEndpoint(engine, prompt, fingerprint="f")

    if (attempt.folder / "config.json").exists():
        await resume(RunFolder(attempt.folder), Watch(), open_endpoint=open_endpoint)
    else:
        await start(
            attempt.config,
            attempt.folder.parent,
            Watch(),
            run_dir=attempt.folder,
            open_endpoint=open_endpoint,
        )


def _arm(kill: Kill) -> None:
    """Make this process die at a record, as if someone had sent it SIGKILL just then."""
    append, count = Wal.append, 0

    def dying(self: Wal, body: dict[str, Any]) -> None:
        nonlocal count
        count += kill.concerns(body["kind"])
        if count == kill.number:
            if kill.when == "torn":
                data = frame(self.next_sequence, body)
                os.write(self._descriptor, data[: len(data) // 2])
            elif kill.when == "after":
                append(self, body)
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, body)

    Wal.append = dying  # type: ignore[assignment]
