"""One box as its edge sees it: the log, the connection to process 1, the keys already used.

Order of one command: INTENT on disk, then dispatch; end received, then RESULT on disk, then reply
and acknowledgement. Whoever dies in between, the next edge finds in the log what was meant and
asks process 1, whose journal outlives every edge, what became of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from baleen.errors import SandboxError

from .agentlink import AgentLink, OnOutput
from .errors import (
    BoxBusyError,
    BoxGoneError,
    Cause,
    DivergenceError,
    InDoubtError,
    TrajectoryError,
)
from .images.base import Image
from .ports import PortForward
from .spec import BoxSpec, RunResult
from .trajectory import INLINE_BYTES, Kind, Log, Record, fetch

GRACE_S = 10.0
"""How long after a command's timeout its end may take to arrive before the box counts as lost."""

FAST_SYNC_S = 0.001


@dataclass
class Use:
    """What is known about one key."""

    digest: str
    intent_seq: int
    job: dict[str, Any]
    result_offset: int | None = None
    running: asyncio.Task[RunResult] | None = None
    dispatched: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once process 1 has the command, so that input for it cannot arrive before it."""


class Box:
    """A live box, or the memory of one that ended."""

    def __init__(self, box_id: str, spec: BoxSpec, log: Log, executor: Executor) -> None:
        self.id = box_id
        self.spec = spec
        self.log = log
        self.link: AgentLink | None = None
        self.pid = 0
        self.groups: list[str] = []
        self.slot: int | None = None
        self.image = Image(base="host")
        self.created_at = time.time()
        self.ended: Cause | None = None
        self.clients = 0
        self.idle_since = time.monotonic()
        self._executor = executor
        self._uses: dict[str, Use] = {}
        self._ports: dict[int, tuple[PortForward, int]] = {}

    @property
    def is_busy(self) -> bool:
        return any(use.running is not None for use in self._uses.values())

    def expired(self, now: float) -> bool:
        """Nobody holds it, nothing runs in it, and that for longer than its idle time."""
        if self.clients or self.is_busy:
            self.idle_since = now
        return now - self.idle_since > self.spec.ttl_idle_s

    async def append(self, kind: Kind, payload: dict[str, Any], key: str | None = None) -> Record:
        """Appends a synced record without holding up other boxes."""
        return await self._on_disk(lambda: self.log.append(kind, payload, key))

    async def _on_disk(self, work: Callable[[], Record]) -> Record:
        """Does disk work at once while the disk is fast, else in a thread: a hop costs as much."""
        if self.log.sync_time_s < FAST_SYNC_S:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def recall(self, records: list[Record]) -> None:
        """Rebuilds the table of keys from the log."""
        by_seq: dict[int, Use] = {}
        for record in records:
            if record.kind is Kind.INTENT and record.key is not None:
                use = Use(record.payload["digest"], record.seq, record.payload["job"])
                self._uses[record.key] = by_seq[record.seq] = use
            elif record.kind is Kind.RESULT and record.payload["intent"] in by_seq:
                by_seq[record.payload["intent"]].result_offset = record.offset
            elif record.kind is Kind.INFRA_FAIL and record.payload.get("intent") in by_seq:
                # It never started: the key is free again.
                seq = record.payload["intent"]
                self._uses = {key: use for key, use in self._uses.items() if use.intent_seq != seq}

    def settle_unfinished(self) -> None:
        """After a restart of the edge: collects the results that process 1 kept meanwhile."""
        assert self.link is not None
        for key, use in self._uses.items():
            if use.result_offset is None and use.intent_seq in self.link.known:
                self._launch(key, use, None)

    async def run(
        self, key: str, job: dict[str, Any], on_output: OnOutput | None = None
    ) -> RunResult:
        """Runs a command once per key; the same key again gives the recorded result.

        Raises:
            DivergenceError: the key was used with another command.
            InDoubtError: it was dispatched and the box ended before the result was known.
            BoxGoneError, BoxBusyError, TrajectoryError: nothing was run.
        """
        digest = job_digest(job)
        use = self._uses.get(key)
        if use is not None and use.digest != digest:
            raise DivergenceError(
                f"key {key!r} was used for {_shown(use.job)}, now for {_shown(job)}",
                remedy="use a new key for a new command",
            )
        if use is not None and use.result_offset is not None:
            return self._recorded(use.result_offset)
        self._check_alive(use)
        if use is None:
            use = self._uses[key] = Use(digest, -1, job)
            return await self._shared(key, use, on_output)
        result = await self._shared(key, use, on_output)
        return RunResult(**{**result.to_wire(), "replayed": True})

    def _check_alive(self, use: Use | None) -> None:
        if self.ended is None:
            return
        if use is not None:
            raise InDoubtError(
                f"{_shown(use.job)} was dispatched, then box {self.id} ended ({self.ended}): "
                "it may or may not have run",
                remedy="decide by what the command does; it is not run again",
            )
        raise gone(self.id, self.ended)

    async def _shared(self, key: str, use: Use, on_output: OnOutput | None) -> RunResult:
        task = use.running or self._launch(key, use, on_output)
        # The command belongs to the box: a client that goes away does not cancel it.
        return await asyncio.shield(task)

    def _launch(self, key: str, use: Use, on_output: OnOutput | None) -> asyncio.Task[RunResult]:
        task = asyncio.create_task(self._execute(key, use, on_output))
        use.running = task

        def ended(task: asyncio.Task[RunResult]) -> None:
            use.running = None
            self.idle_since = time.monotonic()
            if not task.cancelled():
                task.exception()  # seen: the client may be gone

        task.add_done_callback(ended)
        return task

    async def _execute(self, key: str, use: Use, on_output: OnOutput | None) -> RunResult:
        if use.intent_seq < 0:
            try:
                record = await self.append(
                    Kind.INTENT, {"op": "run", "digest": use.digest, "job": use.job}, key
                )
            except TrajectoryError:
                self._uses.pop(key, None)
                raise
            use.intent_seq = record.seq
        asyncio.get_running_loop().call_soon(use.dispatched.set)  # after the dispatch below
        end = await self._dispatch(use, on_output)
        if end["error"] is not None:
            self._uses.pop(key, None)
            await self.append(
                Kind.INFRA_FAIL, {"intent": use.intent_seq, "error": end["error"]}, key
            )
            self._acknowledge(use)
            raise BoxBusyError(
                f"{_shown(use.job)} was not started: {end['error']}",
                remedy="end other commands first",
            )
        result = RunResult(
            end["code"],
            end["stdout"],
            end["stderr"],
            end["duration_us"] / 1e6,
            end["truncated"],
            end["timed_out"],
        )
        use.result_offset = (await self._record_result(use, key, result)).offset
        self._acknowledge(use)
        return result

    async def _dispatch(self, use: Use, on_output: OnOutput | None) -> dict[str, Any]:
        if self.link is None or self.ended is not None:
            self._check_alive(use)
        assert self.link is not None
        timeout_ms = use.job.get("timeout_ms")
        limit_s = None if timeout_ms is None else timeout_ms / 1000 + GRACE_S
        try:
            async with asyncio.timeout(limit_s):
                return await self.link.execute(use.intent_seq, use.job, on_output)
        except TimeoutError:
            self.link.close()
            text = f"box {self.id} is silent {GRACE_S} s after the timeout of {_shown(use.job)}"
            raise InDoubtError(text, remedy="the box counts as lost; make a new one") from None
        except BoxGoneError:
            raise InDoubtError(
                f"box {self.id} ended while {_shown(use.job)} ran",
                remedy="it may or may not have finished",
            ) from None

    async def _record_result(self, use: Use, key: str, result: RunResult) -> Record:
        def write() -> Record:
            payload = result.to_wire()
            payload.update(stdout=self.log.keep(result.stdout), stderr=self.log.keep(result.stderr))
            del payload["replayed"]
            return self.log.append(Kind.RESULT, {"intent": use.intent_seq, **payload}, key)

        if len(result.stdout) + len(result.stderr) > INLINE_BYTES:
            return await asyncio.get_running_loop().run_in_executor(self._executor, write)
        return await self._on_disk(write)

    def _acknowledge(self, use: Use) -> None:
        if self.link is not None:
            self.link.acknowledge(use.intent_seq)

    def _recorded(self, offset: int) -> RunResult:
        return result_of(self.log.path, self.log.read_at(offset))

    async def _running_op(self, key: str) -> tuple[AgentLink, int] | None:
        use = self._uses.get(key)
        if use is None or use.running is None or self.link is None:
            return None
        await use.dispatched.wait()
        return self.link, use.intent_seq

    async def send_input(self, key: str, data: bytes, *, eof: bool) -> None:
        """Feeds a running command's standard input; one that has ended takes nothing."""
        if (running := await self._running_op(key)) is not None:
            link, op = running
            link.send_input(op, data, eof=eof)
            await link.drained()

    async def resize(self, key: str, rows: int, columns: int) -> None:
        """Sets the window size of a command on a terminal."""
        if (running := await self._running_op(key)) is not None:
            link, op = running
            link.resize(op, rows, columns)

    async def signal(self, key: str, number: int) -> None:
        """Signals a running command's process group."""
        if (running := await self._running_op(key)) is not None:
            link, op = running
            link.signal(op, number)

    async def forward(self, port: int) -> int:
        """Returns the port of the host's loopback that leads to a port of the box."""
        if self.link is None or self.ended is not None:
            raise gone(self.id, self.ended or Cause.NODE_LOST)
        if port not in self._ports:
            forward = PortForward(self.link, port)
            self._ports[port] = (forward, await forward.start())
        return self._ports[port][1]

    def stop_forwards(self) -> None:
        """Closes every forwarded port."""
        for forward, _ in self._ports.values():
            forward.stop()
        self._ports.clear()


def result_of(path: Path, record: Record) -> RunResult:
    """The result that a RESULT record holds, marked as replayed."""
    data = {name: value for name, value in record.payload.items() if name != "intent"}
    streams = {name: fetch(path, data[name]) for name in ("stdout", "stderr")}
    return RunResult(**{**data, **streams, "replayed": True})


def job_digest(job: dict[str, Any]) -> str:
    """Digest of what makes a command this command: limits on time and output do not."""
    parts = [job.get(name) for name in ("argv", "cwd", "stdin", "user")]
    env = sorted((job.get("env") or {}).items())
    packed: bytes = msgpack.packb([parts, env], use_bin_type=True, unicode_errors="surrogateescape")
    return hashlib.sha256(packed).hexdigest()


def gone(box_id: str, cause: Cause) -> SandboxError:
    """The error for a box that ended."""
    remedies = {
        Cause.EXPIRED: "it was idle for longer than ttl_idle_s; create it with a longer one",
        Cause.OUT_OF_MEMORY: "create it with a larger memory_mb",
    }
    return BoxGoneError(
        f"box {box_id} no longer exists: {cause}", remedy=remedies.get(cause), cause=cause
    )


def _shown(job: dict[str, Any]) -> str:
    argv = [part if isinstance(part, str) else repr(part) for part in job["argv"]]
    text = " ".join(argv)
    return repr(text if len(text) <= 80 else text[:77] + "...")
