"""Killing a process at a moment that its log tells, so that a busy machine changes nothing."""

from __future__ import annotations

import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path


def kill_when_grown(
    process: subprocess.Popen[str] | subprocess.Popen[bytes] | BaseProcess,
    log: Path,
    num_bytes: int,
) -> None:
    """SIGKILL the process when its log has grown by so many bytes; it may have ended before."""
    enough = size(log) + num_bytes
    while _is_alive(process) and size(log) < enough:
        time.sleep(0.0005)
    process.kill()


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_alive(process: subprocess.Popen[str] | subprocess.Popen[bytes] | BaseProcess) -> bool:
    return process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None
