"""An edge of a test's own: its home folder, its boxes, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from baleen.sandbox import Sandbox


@contextmanager
def edge_home(root: Path) -> Iterator[Path]:
    """Let this process use an edge under `root`; at the end no box may be left, and it is ended."""
    before = os.environ.get("BALEEN_HOME")
    os.environ["BALEEN_HOME"] = str(root)
    try:
        yield root
        left = asyncio.run(Sandbox.list())
        asyncio.run(Sandbox.reap())
        assert left == [], f"boxes outlived their runs: {left}"
    finally:
        _end_edge(root)
        if before is None:
            del os.environ["BALEEN_HOME"]
        else:
            os.environ["BALEEN_HOME"] = before


def close_box(box_id: str) -> None:
    """End a box as somebody else would."""

    async def close() -> None:
        await (await Sandbox.attach(box_id)).close()

    asyncio.run(close())


def edge_pid(root: Path) -> int:
    return int((root / "edge.pid").read_text())


def kill_edge(root: Path) -> None:
    """SIGKILL; its boxes live on."""
    pid = edge_pid(root)
    os.kill(pid, signal.SIGKILL)
    _wait_for_end(pid)


def _end_edge(root: Path) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = edge_pid(root)
        os.kill(pid, signal.SIGTERM)
        _wait_for_end(pid)


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            with suppress(ChildProcessError):  # it may be another process's child
                os.waitpid(pid, 0)
            return
        time.sleep(0.01)
    raise AssertionError(f"edge {pid} does not end")
