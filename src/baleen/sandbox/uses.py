"""What an edge knows about one key: which command it stands for, and how far that is."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from baleen.errors import SandboxError, UsageError

from .agentlink import OnOutput
from .spec import HARD_MAX_COMMAND_BYTES, RunResult

Done = Callable[[RunResult | SandboxError], None]


@dataclass(slots=True)
class Use:
    """A key that was used."""

    key: str
    digest: str
    intent_seq: int
    job: dict[str, Any]
    result_offset: int | None = None
    on_output: OnOutput | None = None
    waiting: list[tuple[Done, bool]] = field(default_factory=list)
    """Who waits for the end, and whether he came after the one who began."""
    is_running: bool = False
    dispatched: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once process 1 has the command, so that input for it cannot arrive before it."""
    patience: asyncio.TimerHandle | None = None
    was_paused: bool = False
    """Its clock has stood still since its patience was counted."""


def job_digest(job: dict[str, Any]) -> str:
    """Digest of what makes a command this command: limits on time and output do not.

    Raises:
        UsageError: process 1 would not take a command of that many bytes.
    """
    parts = [job.get(name) for name in ("argv", "cwd", "stdin", "user")]
    env = sorted((job.get("env") or {}).items())
    packed: bytes = msgpack.packb([parts, env], use_bin_type=True, unicode_errors="surrogateescape")
    if len(packed) > HARD_MAX_COMMAND_BYTES:
        raise UsageError(
            f"a command of {len(packed)} bytes is over the limit of {HARD_MAX_COMMAND_BYTES}",
            remedy="put its input into a file of the box",
        )
    return hashlib.sha256(packed).hexdigest()


def shown(job: dict[str, Any]) -> str:
    argv = [part if isinstance(part, str) else repr(part) for part in job["argv"]]
    text = " ".join(argv)
    return repr(text if len(text) <= 80 else text[:77] + "...")
