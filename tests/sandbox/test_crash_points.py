"""Death at exactly one point of a command's way; ``docs/sandbox.md`` has the table of them all.

Where an instant is too short to be met by a signal, the log is left as a death there leaves it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from baleen.sandbox import RunResult, Sandbox
from baleen.sandbox.blobs import keep
from baleen.sandbox.home import Home
from baleen.sandbox.log import Log
from baleen.sandbox.trajectory import Kind, read, verify
from baleen.sandbox.uses import job_digest

from .conftest import edge_pid, kill_edge

STREAMS = ("stdout", "stderr")
ARGV = ["sh", "-c", "echo x >> /tmp/count; wc -l < /tmp/count"]


async def executions(box: Sandbox) -> int:
    return len((await box.shell("cat /tmp/count 2>/dev/null")).text.split())


def leave(box: Sandbox, result: RunResult | None) -> None:
    """What an edge has written that died behind the intent, or behind the result."""
    job = box._job(ARGV, timeout_s=30, cwd=None, env=None, user=None)
    log = Log.open(box.trajectory)
    payload: dict[str, Any] = {"op": "run", "digest": job_digest(job), "job": job}
    intent = log.append(Kind.INTENT, payload, "k")
    if result is not None:
        streams = {name: keep(box.trajectory, getattr(result, name)) for name in STREAMS}
        kept = {**result.to_wire(), **streams, "intent": intent.seq}
        del kept["replayed"]
        log.append(Kind.RESULT, kept, "k")
    log.close()


async def test_before_the_intent_nothing_has_happened_and_the_retry_runs(
    box: Sandbox, host: Home
) -> None:
    await box.run(["true"])
    edge = edge_pid(host.root)
    assert edge is not None
    os.kill(edge, signal.SIGSTOP)  # so the request lies in the socket, unread
    running = asyncio.create_task(box.run(ARGV, key="k"))
    await asyncio.sleep(0.2)
    kill_edge(host.root)
    result = await running
    assert (result.text, result.replayed) == ("1\n", False)
    assert await executions(box) == 1
    assert [record.kind for record in read(box.trajectory)].count(Kind.INTENT) == 3


async def test_between_intent_and_dispatch_it_is_safe_to_run(box: Sandbox, host: Home) -> None:
    await box.run(["true"])
    kill_edge(host.root)
    leave(box, None)
    result = await box.run(ARGV, key="k")
    assert (result.text, result.replayed) == ("1\n", False)
    assert (await box.run(ARGV, key="k")).replayed
    assert await executions(box) == 1
    keys = [record.key for record in read(box.trajectory) if record.kind is Kind.INTENT]
    assert keys.count("k") == 1, "the intent stands, no second one is written"
    verify(box.trajectory)


async def test_behind_the_result_a_retry_gets_the_recorded_one(box: Sandbox, host: Home) -> None:
    await box.run(["true"])
    kill_edge(host.root)
    leave(box, RunResult(0, b"recorded\n", b"", 0.5, False, False))
    result = await box.run(ARGV, key="k")
    assert (result.text, result.replayed) == ("recorded\n", True)
    assert await executions(box) == 0
    verify(box.trajectory)
