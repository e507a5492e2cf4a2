"""One box as its edge sees it: the log, the connection to process 1, the keys already used.

Order of one command: INTENT on disk, then dispatch; end received, then RESULT on disk, then reply
and acknowledgement. The steps are callbacks, not coroutines: a command takes a millisecond, and a
task for each step would cost a good part of another. Whoever dies in between, the next edge finds
in the log what was meant and asks process 1, whose journal outlives every edge, what became of it.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from typing import Any

from baleen.errors import SandboxError

from .agentlink import AgentLink, OnOutput
from .blobs import INLINE_BYTES
from .cgroups import out_of_memory_kills
from .egress import Egress, network_from_wire, proxy_environment
from .errors import (
    BoxBusyError,
    BoxGoneError,
    Cause,
    DivergenceError,
    InDoubtError,
    TrajectoryError,
)
from .images.base import Image
from .journal import Journal
from .log import Log
from .ports import PortForward
from .results import kept_result, result_of
from .spec import BoxSpec, RunResult
from .trajectory import Kind, Record
from .uses import Done, Use, job_digest, shown

GRACE_S = 10.0
"""How long after a command's timeout its end may take to arrive before the box counts as lost."""


class Box:
    """A live box, or the memory of one that ended."""

    def __init__(
        self, box_id: str, spec: BoxSpec, log: Log, journal: Journal, executor: Executor
    ) -> None:
        self.id = box_id
        self.spec = spec
        self.log = log
        self.request = ""
        """What its creator called the request, so that the same request gives the same box."""
        self.link: AgentLink | None = None
        self.pid = 0
        self.groups: list[str] = []
        self.slot: int | None = None
        self.image = Image(base="host")
        self.places: list[str] = []
        """Where its overlays are mounted, in the order of their upper layers."""
        self.confinement: dict[str, Any] = {}
        """What the launcher could use of this kernel; empty for boxes of older versions."""
        self.created_at = time.time()
        self.ended: Cause | None = None
        self.network: str | list[str] = "none"
        """What the log says it may reach."""
        self.is_paused = False
        self.may_be_frozen = False
        """Somebody has paused it, or begun to."""
        self.clients = 0
        self.idle_since = time.monotonic()
        self._journal = journal
        self._executor = executor
        self._running = 0
        self._memory_kills = 0
        self._uses: dict[str, Use] = {}
        self._egress: Egress | None = None
        self._ports: dict[int, tuple[PortForward, int]] = {}

    @property
    def is_busy(self) -> bool:
        return self._running > 0

    @property
    def writes_to_host(self) -> bool:
        """Whether its commands change folders of the host until the last of them has ended."""
        return any(mount.mode == "rw" for mount in self.spec.mounts)

    def expired(self, now: float) -> bool:
        """Nobody holds it, nothing runs in it, and that for longer than its idle time."""
        if self.clients or self.is_busy or self.is_paused:
            self.idle_since = now
        return now - self.idle_since > self.spec.ttl_idle_s

    def hold_still(self) -> None:
        """Stops the clocks: no time passes for a paused box."""
        self.is_paused = self.may_be_frozen = True
        for use in self._uses.values():
            use.was_paused = use.is_running
        if self.link is not None:
            self.link.pause()

    def go_on(self) -> None:
        self.is_paused = False
        if self.link is not None:
            self.link.resume()

    async def append(self, kind: Kind, payload: dict[str, Any], key: str | None = None) -> Record:
        """Appends a record and waits until it is on disk."""
        record = self.log.append(kind, payload, key, sync=False)
        await self._journal.committed(self.log)
        return record

    def recall(self, records: list[Record]) -> None:
        """Rebuilds the table of keys from the log."""
        by_seq: dict[int, Use] = {}
        for record in records:
            if record.kind is Kind.NET_POLICY:
                self.network = record.payload["network"]
            elif record.kind is Kind.INTENT and record.key is not None:
                payload = record.payload
                use = Use(record.key, payload["digest"], record.seq, payload["job"])
                self._uses[record.key] = by_seq[record.seq] = use
            elif record.kind is Kind.RESULT and record.payload["intent"] in by_seq:
                by_seq[record.payload["intent"]].result_offset = record.offset
            elif record.kind is Kind.INFRA_FAIL and record.payload.get("intent") in by_seq:
                # It never started: the key is free again.
                use = by_seq.pop(record.payload["intent"])
                if self._uses.get(use.key) is use:
                    del self._uses[use.key]

    def settle_unfinished(self) -> None:
        """After a restart of the edge: collects the results that process 1 kept meanwhile."""
        assert self.link is not None
        kept = [use for use in self._uses.values() if use.intent_seq in self.link.known]
        unfinished = [use for use in kept if use.result_offset is None]
        if not unfinished:
            self._met_the_memory_killer()  # whoever did has been told so by the edge before
        for use in kept:
            if use.result_offset is None:
                self._begin(use)
            else:
                self._acknowledge(use)  # the last edge was killed before it did

    def run(
        self, key: str, job: dict[str, Any], done: Done, on_output: OnOutput | None = None
    ) -> None:
        """Runs a command once per key; the same key again gives the recorded result.

        The command belongs to the box: a client that goes away does not cancel it. ``done`` gets
        the result or one of:

            DivergenceError: the key was used with another command.
            InDoubtError: it was dispatched and the box ended before the result was known.
            BoxGoneError, BoxBusyError, TrajectoryError: nothing was run.
        """
        use = self._uses.get(key)
        digest = job_digest(job)
        if use is None:
            if self.ended is not None:
                done(gone(self.id, self.ended))
                return
            use = self._uses[key] = Use(key, digest, -1, job, on_output=on_output)
            use.waiting.append((done, False))
            self._begin(use)
            return
        if use.digest != digest:
            text = f"key {key!r} was used for {shown(use.job)}, now for {shown(job)}"
            done(DivergenceError(text, remedy="use a new key for a new command"))
            return
        if use.result_offset is not None and not use.is_running:
            self._recall_result(use, done)
            return
        if self.ended is not None:
            done(self._in_doubt(use))
            return
        # One that an edge before has only written down begins now, for this caller.
        has_begun = use.is_running or (self.link is not None and use.intent_seq in self.link.known)
        use.waiting.append((done, has_begun))
        if not use.is_running:
            use.on_output = on_output
            self._begin(use)

    def _in_doubt(self, use: Use) -> InDoubtError:
        return InDoubtError(
            f"{shown(use.job)} was dispatched, then box {self.id} ended ({self.ended}): "
            "it may or may not have run",
            remedy="decide by what the command does; it is not run again",
        )

    def _recall_result(self, use: Use, done: Done) -> None:
        assert use.result_offset is not None
        try:
            done(result_of(self.log.path, self.log.read_at(use.result_offset)))
        except OSError as error:
            done(TrajectoryError(f"cannot read {self.log.path}: {error.strerror}"))
        except TrajectoryError as error:
            done(error)

    def _begin(self, use: Use) -> None:
        use.is_running = True
        self._running += 1
        if use.intent_seq >= 0:
            self._dispatch(use)
            return
        payload = {"op": "run", "digest": use.digest, "job": use.job}
        try:
            record = self.log.append(Kind.INTENT, payload, use.key, sync=False)
        except TrajectoryError as error:
            self._refuse(use, error)
            return
        self._journal.commit(self.log, lambda error: self._intended(use, record.seq, error))

    def _intended(self, use: Use, seq: int, error: TrajectoryError | None) -> None:
        if error is not None:
            self._refuse(use, error)
            return
        use.intent_seq = seq
        self._dispatch(use)

    def _refuse(self, use: Use, error: SandboxError) -> None:
        """Ends a command that never started; its key is free again."""
        if self._uses.get(use.key) is use:
            del self._uses[use.key]
        self._end(use, error)

    def _dispatch(self, use: Use) -> None:
        if self.link is None or self.ended is not None:
            self._end(use, self._in_doubt(use))
            return
        job = use.job
        if self._egress is not None and self._egress.network != "none":
            job = {**job, "env": {**proxy_environment(), **(job.get("env") or {})}}
        self.link.execute(use.intent_seq, job, lambda end: self._came_back(use, end), use.on_output)
        use.dispatched.set()
        if (timeout_ms := use.job.get("timeout_ms")) is not None and use.is_running:
            delay_s = timeout_ms / 1000 + GRACE_S
            use.patience = asyncio.get_running_loop().call_later(delay_s, self._lose, use)

    def _lose(self, use: Use) -> None:
        """The box is silent long after the command's timeout: it counts as lost."""
        if self.is_paused or use.was_paused:
            use.was_paused = self.is_paused
            delay_s = use.job["timeout_ms"] / 1000 + GRACE_S
            use.patience = asyncio.get_running_loop().call_later(delay_s, self._lose, use)
            return
        text = f"box {self.id} is silent {GRACE_S} s after the timeout of {shown(use.job)}"
        self._end(use, InDoubtError(text, remedy="the box counts as lost; make a new one"))
        if self.link is not None:
            self.link.close()

    def _came_back(self, use: Use, end: dict[str, Any] | None) -> None:
        if not use.is_running:
            return
        if end is None or self.ended is not None:
            text = f"box {self.id} ended while {shown(use.job)} ran"
            self._end(use, InDoubtError(text, remedy="it may or may not have finished"))
            return
        if end["error"] is not None:
            self._not_started(use, end["error"])
            return
        result = RunResult(
            end["code"],
            end["stdout"],
            end["stderr"],
            end["duration_us"] / 1e6,
            end["truncated"],
            end["timed_out"],
            out_of_memory=end["code"] != 0 and self._met_the_memory_killer(),
        )
        if len(result.stdout) + len(result.stderr) <= INLINE_BYTES:
            self._record(use, result, kept_result(self.log.path, result))
            return
        loop = asyncio.get_running_loop()
        keeping = loop.run_in_executor(self._executor, kept_result, self.log.path, result)
        keeping.add_done_callback(lambda future: self._record(use, result, future.result()))

    def _met_the_memory_killer(self) -> bool:
        """Whether the kernel has killed for memory since the last look."""
        before, self._memory_kills = self._memory_kills, out_of_memory_kills(self.groups)
        return self._memory_kills > before

    def _record(self, use: Use, result: RunResult, kept: dict[str, Any] | TrajectoryError) -> None:
        if isinstance(kept, TrajectoryError):
            self._end(use, _unrecorded(use, kept))
            return
        if self.ended is not None:
            self._came_back(use, None)
            return
        del kept["replayed"]
        try:
            record = self.log.append(
                Kind.RESULT, {"intent": use.intent_seq, **kept}, use.key, sync=False
            )
        except TrajectoryError as error:
            self._end(use, _unrecorded(use, error))
            return

        def recorded(error: TrajectoryError | None) -> None:
            if error is not None:
                self._end(use, _unrecorded(use, error))
                return
            use.result_offset = record.offset
            self._end(use, result)
            self._acknowledge(use)

        self._journal.commit(self.log, recorded)

    def _not_started(self, use: Use, why: str) -> None:
        error: SandboxError = BoxBusyError(
            f"{shown(use.job)} was not started: {why}", remedy="end other commands first"
        )
        try:
            payload = {"intent": use.intent_seq, "error": why}
            self.log.append(Kind.INFRA_FAIL, payload, use.key, sync=False)
        except TrajectoryError as refused:
            self._end(use, refused)
            return

        def recorded(refused: TrajectoryError | None) -> None:
            if refused is not None:
                self._end(use, refused)
                return
            self._acknowledge(use)
            self._refuse(use, error)

        self._journal.commit(self.log, recorded)

    def _end(self, use: Use, outcome: RunResult | SandboxError) -> None:
        """Tells everybody who waits; the first gets the result, the others a replay of it."""
        if not use.is_running:
            return
        if use.patience is not None:
            use.patience.cancel()
            use.patience = None
        use.is_running = False
        use.on_output = None
        self._running -= 1
        self.idle_since = time.monotonic()
        waiting, use.waiting = use.waiting, []
        for done, is_late in waiting:
            if is_late and isinstance(outcome, RunResult):
                done(outcome.again())
            else:
                done(outcome)

    def _acknowledge(self, use: Use) -> None:
        if self.link is not None:
            self.link.acknowledge(use.intent_seq)

    async def _running_op(self, key: str) -> tuple[AgentLink, int] | None:
        use = self._uses.get(key)
        if use is None or not use.is_running or self.link is None:
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

    async def set_network(self, network: str | list[str]) -> None:
        """Switches what the box may reach; in the log before it holds.

        Raises:
            BoxFileError: a program of the box has taken the proxy's port.
        """
        await self.append(Kind.NET_POLICY, {"network": network})
        await self.open_network(network)

    async def open_network(self, network: str | list[str]) -> None:
        """Makes a policy hold; a box that may reach nothing gets no proxy at all."""
        if self.link is None or self.ended is not None:
            raise gone(self.id, self.ended or Cause.NODE_LOST)
        policy = network_from_wire(network)
        if self._egress is not None:
            self._egress.switch(policy)
        elif policy != "none":
            self._egress = Egress(self.link, policy)
            await self._egress.start()

    async def forward(self, port: int) -> int:
        """Returns the port of the host's loopback that leads to a port of the box."""
        if self.link is None or self.ended is not None:
            raise gone(self.id, self.ended or Cause.NODE_LOST)
        if port not in self._ports:
            forward = PortForward(self.link, port)
            self._ports[port] = (forward, await forward.start())
        return self._ports[port][1]

    def stop_forwards(self) -> None:
        """Closes every forwarded port and every connection to the outside."""
        if self._egress is not None:
            self._egress.cut()
        for forward, _ in self._ports.values():
            forward.stop()
        self._ports.clear()


def _unrecorded(use: Use, error: TrajectoryError) -> TrajectoryError:
    return TrajectoryError(
        f"{shown(use.job)} has run, its result is kept in the box: {error.message}",
        remedy="free disk space and ask again with the same key; it does not run again",
    )


def gone(box_id: str, cause: Cause) -> SandboxError:
    """The error for a box that ended."""
    remedies = {
        Cause.EXPIRED: "it was idle for longer than ttl_idle_s; create it with a longer one",
        Cause.OUT_OF_MEMORY: "create it with a larger memory_mb",
    }
    return BoxGoneError(
        f"box {box_id} no longer exists: {cause}", remedy=remedies.get(cause), cause=cause
    )
