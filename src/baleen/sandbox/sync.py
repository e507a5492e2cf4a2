"""The sandbox without ``await``: the same names, one background event loop for all boxes.

The loop starts with the first call. Sharing one keeps starts parallel: threads only wait for
results.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from .backends import Backend
from .files import FileInfo
from .images.base import Config
from .job import Argv
from .process import Output
from .process import Process as AsyncProcess
from .sandbox import Sandbox as AsyncSandbox
from .spec import Allowlist, RunResult

__all__ = ["Allowlist", "Files", "Output", "Process", "RunResult", "Sandbox"]

T = TypeVar("T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _background() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_loop.run_forever, name="baleen-sandbox", daemon=True)
            thread.start()
            atexit.register(_stop, _loop, thread)
        return _loop


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def _wait(work: Coroutine[Any, Any, T]) -> T:
    future = asyncio.run_coroutine_threadsafe(work, _background())
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C in the caller must not leave the request waiting
        raise


class Files:
    """``box.files`` without await; see :class:`baleen.sandbox.Files`."""

    def __init__(self, box: AsyncSandbox) -> None:
        self._files = box.files

    def read(self, path: str, **options: Any) -> bytes:
        return _wait(self._files.read(path, **options))

    def write(self, path: str, data: bytes | str, **options: Any) -> None:
        _wait(self._files.write(path, data, **options))

    def list(self, path: str = "/") -> list[FileInfo]:
        return _wait(self._files.list(path))

    def remove(self, path: str) -> None:
        _wait(self._files.remove(path))

    def upload(self, source: str | Path, target: str) -> None:
        _wait(self._files.upload(source, target))

    def download(self, source: str, target: str | Path) -> None:
        _wait(self._files.download(source, target))


class Process:
    """A running command without await; see :class:`baleen.sandbox.Process`."""

    def __init__(self, process: AsyncProcess) -> None:
        self._process = process

    def __iter__(self) -> Iterator[Output]:
        outputs = self._process.__aiter__()

        async def step() -> Output | None:
            return await anext(outputs, None)

        while (output := _wait(step())) is not None:
            yield output

    def wait(self) -> RunResult:
        return _wait(self._process.wait())

    def write(self, data: bytes | str, *, eof: bool = False) -> None:
        _wait(self._process.write(data, eof=eof))

    def resize(self, rows: int, columns: int) -> None:
        _wait(self._process.resize(rows, columns))

    def send_signal(self, number: int) -> None:
        _wait(self._process.send_signal(number))


class Sandbox:
    """A box without await; see :class:`baleen.sandbox.Sandbox` for every argument and error."""

    def __init__(self, box: AsyncSandbox) -> None:
        self._box = box
        self.id = box.id
        self.files = Files(box)

    @classmethod
    def create(cls, **options: Any) -> Sandbox:
        return cls(_wait(AsyncSandbox.create(**options)))

    @classmethod
    def attach(cls, box_id: str) -> Sandbox:
        return cls(_wait(AsyncSandbox.attach(box_id)))

    @staticmethod
    def backends() -> list[Backend]:
        return AsyncSandbox.backends()

    @staticmethod
    def list(labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        return _wait(AsyncSandbox.list(labels))

    @staticmethod
    def reap(job: str | None = None) -> Sequence[str]:
        return _wait(AsyncSandbox.reap(job))

    @staticmethod
    def pause_job(job: str) -> Sequence[str]:
        return _wait(AsyncSandbox.pause_job(job))

    @staticmethod
    def resume_job(job: str) -> Sequence[str]:
        return _wait(AsyncSandbox.resume_job(job))

    @property
    def config(self) -> Config:
        return self._box.config

    @property
    def trajectory(self) -> Path:
        return self._box.trajectory

    def capabilities(self) -> dict[str, object]:
        return self._box.capabilities()

    def run(self, argv: Argv, **options: Any) -> RunResult:
        return _wait(self._box.run(argv, **options))

    def shell(self, line: str, **options: Any) -> RunResult:
        return _wait(self._box.shell(line, **options))

    def call(self, function: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
        return _wait(self._box.call(function, *arguments, **options))

    def stream(self, argv: Argv, **options: Any) -> Process:
        return Process(self._box.stream(argv, **options))

    def pty(self, argv: Argv, **options: Any) -> Process:
        return Process(self._box.pty(argv, **options))

    def port(self, number: int) -> str:
        return _wait(self._box.port(number))

    def set_network(self, network: str | Allowlist) -> None:
        _wait(self._box.set_network(network))

    def snapshot(self, name: str | None = None) -> str:
        return _wait(self._box.snapshot(name))

    def fork(self, n: int = 1) -> Sequence[Sandbox]:
        return [Sandbox(child) for child in _wait(self._box.fork(n))]

    def pause(self) -> None:
        _wait(self._box.pause())

    def resume(self) -> None:
        _wait(self._box.resume())

    def close(self) -> None:
        _wait(self._box.close())

    def detach(self) -> None:
        _wait(self._box.detach())

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
