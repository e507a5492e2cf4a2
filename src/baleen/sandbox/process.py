"""A running command as its user holds it: output as it is written, input, signals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .job import check_signal, check_window
from .spec import RunResult

Ask = Callable[..., Awaitable[Any]]
"""How a box asks the edge: what to do, and its arguments."""


@dataclass(frozen=True)
class Output:
    """A piece of a running command's output."""

    stream: str
    """"stdout" or "stderr"."""
    data: bytes


class Process:
    """A running command: iterate for its :class:`Output`, then :meth:`wait` for its result."""

    def __init__(self, ask: Ask, key: str, job: dict[str, Any]) -> None:
        self._ask = ask
        self._key = key
        self._job = job
        self._queue: asyncio.Queue[Output | None] = asyncio.Queue()
        self._task: asyncio.Task[RunResult] | None = None

    def _start(self) -> asyncio.Task[RunResult]:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return self._task

    async def _started(self) -> None:
        """Returns when the command has been asked for: only then may input for it follow."""
        if self._task is None:
            self._start()
            await asyncio.sleep(0)

    async def _run(self) -> RunResult:
        def take(stream: int, data: bytes) -> None:
            self._queue.put_nowait(Output("stdout" if stream == 1 else "stderr", data))

        try:
            answer = await self._ask("run", on_output=take, key=self._key, job=self._job, live=True)
            return RunResult.from_wire(answer)
        finally:
            self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Output]:
        task = self._start()
        while (output := await self._queue.get()) is not None:
            yield output
        await task

    async def wait(self) -> RunResult:
        """Returns the result, with the whole output, when the command has ended."""
        return await self._start()

    async def write(self, data: bytes | str, *, eof: bool = False) -> None:
        """Feeds standard input of a command started with ``stdin_open=True``."""
        await self._started()
        content = data.encode() if isinstance(data, str) else data
        await self._ask("stdin", key=self._key, data=content, eof=eof)

    async def resize(self, rows: int, columns: int) -> None:
        """Sets the window size of a command started with :meth:`Sandbox.pty`."""
        check_window(rows, columns)
        await self._started()
        await self._ask("resize", key=self._key, rows=rows, columns=columns)

    async def send_signal(self, number: int) -> None:
        """Signals the command's process group."""
        number = check_signal(number)
        await self._started()
        await self._ask("signal", key=self._key, signal=number)
