"""What the gateway adds: to the first token, to every token, and in processor time per token.

Three processes on one machine: a stand-in engine that streams as vLLM does, the gateway, and this
client. Processor time is the gateway's own, so other load on the machine matters little to it.

    python benchmarks/gateway_speed.py             # about two minutes
    python benchmarks/gateway_speed.py --short     # shows that it works
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from results import write_results

FIRST = re.compile(rb'"token_ids": \[4|reasoning_content":"[^"]')
"""The first token, of the engine or of the gateway."""
HERE = Path(__file__).parent


@contextmanager
def process(*command: str, stream: str = "stdout") -> Iterator[tuple[int, str]]:
    """A process and the first line that it prints."""
    pipes: dict[str, Any] = {stream: subprocess.PIPE}
    with subprocess.Popen([sys.executable, *command], text=True, **pipes) as started:
        line = getattr(started, stream).readline()
        try:
            yield started.pid, line.strip()
        finally:
            started.send_signal(signal.SIGKILL)


@contextmanager
def gateway(engine_port: str, *options: str) -> Iterator[tuple[int, int]]:
    """A gateway in front of an engine: its process and its port."""
    command = ["-m", "baleen.cli.main", "serve", "nano", "--upstream-kind", "vllm", "--no-grammar"]
    url = f"http://127.0.0.1:{engine_port}"
    with process(*command, "--port", "0", "--upstream", url, *options, stream="stderr") as (
        pid,
        line,
    ):
        yield pid, int(line.rpartition(":")[2])


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Tally:
    """What has come of some streams so far."""

    events = 0
    begun = 0


async def ask(
    port: int, path: str, body: dict[str, Any], tally: Tally | None = None, delay_s: float = 0.0
) -> tuple[float, float, int]:
    """Stream one answer: seconds to the first token, to the last, and the number of events."""
    await asyncio.sleep(delay_s)
    tally = tally or Tally()
    data = json.dumps(body).encode()
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\nconnection: close\r\n\r\n".encode()
        + data
    )
    first, events = 0.0, 0
    while piece := await reader.read(1 << 16):
        count = piece.count(b"data: ")
        events += count
        tally.events += count
        if not first and FIRST.search(piece):
            first = time.perf_counter()
            tally.begun += 1
    writer.close()
    return first - started, time.perf_counter() - started, events


def chat(max_tokens: int) -> dict[str, Any]:
    """A request to the gateway."""
    messages = [{"role": "user", "content": "Say words."}]
    return {"messages": messages, "stream": True, "max_tokens": max_tokens}


def bare(max_tokens: int) -> dict[str, Any]:
    """The same request to the engine."""
    return {"model": "v4", "prompt": [0, 2, 3], "stream": True, "max_tokens": max_tokens}


async def latency(rounds: int) -> list[dict[str, Any]]:
    """First token and time per token of single streams, bare and through the gateway."""
    rows = []
    with (
        process(str(HERE / "gateway_engine.py"), "2") as (_, engine),
        tempfile.TemporaryDirectory() as state,
        gateway(engine, "--state", state) as (_, port),
    ):
        kinds = {
            "bare": (int(engine), "/v1/completions", bare(100)),
            "gateway": (port, "/v1/chat/completions", chat(100)),
        }
        times: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, asked in kinds.items():
                times[kind].append(await ask(*asked))
        first = {k: statistics.median(t[0] for t in found) for k, found in times.items()}
        last = {k: statistics.median(t[1] for t in found) for k, found in times.items()}
        for kind in kinds:
            rows.append({"what": f"first token, {kind}", "value": first[kind] * 1e3, "unit": "ms"})
        added = (first["gateway"] - first["bare"]) * 1e3
        rows.append({"what": "added to the first token", "value": added, "unit": "ms"})
        per_token = ((last["gateway"] - first["gateway"]) - (last["bare"] - first["bare"])) / 99
        rows.append({"what": "added per token", "value": per_token * 1e6, "unit": "us"})
    return rows


async def trickle(streams: int, seconds: float, pace_ms: float) -> list[dict[str, Any]]:
    """Processor time per token where each comes alone: the gateway's, and a bare relay's.

    Streams begin out of step, as they do in life, so that nearly every token wakes the process by
    itself. Time is taken once all have begun: what a request costs is a figure of its own.
    """
    rows = []
    name = f"{streams} streams, a token each {pace_ms:g} ms"
    tokens = int((seconds + 2 + streams * 0.003) * 1e3 / pace_ms)
    with process(str(HERE / "gateway_engine.py"), str(pace_ms)) as (_, engine):
        for kind in ("relay", "gateway"):
            with ExitStack() as stack:
                if kind == "relay":
                    started = stack.enter_context(process(str(HERE / "gateway_relay.py"), engine))
                    pid, port, path, body = started[0], int(started[1]), "/v1/completions", bare
                else:
                    state = stack.enter_context(tempfile.TemporaryDirectory())
                    pid, port = stack.enter_context(gateway(engine, "--state", state))
                    path, body = "/v1/chat/completions", chat
                await ask(port, path, body(20))
                tally, before = Tally(), cpu_s(pid)
                asked = [
                    asyncio.create_task(ask(port, path, body(tokens), tally, number * 0.003))
                    for number in range(streams)
                ]
                while tally.begun < streams:
                    await asyncio.sleep(0.01)
                spent, events = cpu_s(pid), tally.events
                await asyncio.sleep(seconds)
                per_token = (cpu_s(pid) - spent) / (tally.events - events)
                await asyncio.gather(*asked)
            what = f"{name}, {kind}: processor time per token"
            rows.append({"what": what, "value": per_token * 1e6, "unit": "us"})
            if kind == "gateway":
                per_request = (spent - before - events * per_token) / streams
                what = f"{name}, {kind}: processor time per request"
                rows.append({"what": what, "value": per_request * 1e3, "unit": "ms"})
    added = rows[1]["value"] - rows[0]["value"]
    return [*rows, {"what": f"{name}: added per token", "value": added, "unit": "us"}]


async def load(streams: int, tokens: int, pace_ms: float, *options: str) -> list[dict[str, Any]]:
    """Processor time per token with many streams at once."""
    with (
        process(str(HERE / "gateway_engine.py"), str(pace_ms)) as (_, engine),
        tempfile.TemporaryDirectory() as state,
        gateway(engine, "--state", state, *options) as (pid, port),
    ):
        await ask(port, "/v1/chat/completions", chat(20))
        before, started = cpu_s(pid), time.perf_counter()
        asked = (ask(port, "/v1/chat/completions", chat(tokens)) for _ in range(streams))
        found = await asyncio.gather(*asked)
        spent, took = cpu_s(pid) - before, time.perf_counter() - started
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert all(events > tokens - 3 for _, _, events in found), "every token was streamed"
    name = f"{streams} streams, a token each {pace_ms:g} ms" if pace_ms else f"{streams} in bursts"
    total = streams * tokens
    return [
        {"what": f"{name}: processor time per token", "value": spent / total * 1e6, "unit": "us"},
        {"what": f"{name}: tokens per second per core", "value": total / spent, "unit": "1/s"},
        {"what": f"{name}: tokens per second", "value": total / took, "unit": "1/s"},
        {"what": f"{name}: memory", "value": rss / 1e6, "unit": "MB"},
    ]


async def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    rows = await latency(5 if short else 50)
    rows += await trickle(50, 2 if short else 15, 50)
    if not short:
        rows += await trickle(200, 15, 50)
    rows += await load(20 if short else 50, 400 if short else 4_000, 0)
    if not short:
        rows += await load(1_000, 100, 200)
    for row in rows:
        print(f"{row['what']:60} {row['value']:12.2f} {row['unit']}")
    if not short:
        write_results("gateway_speed", rows)


if __name__ == "__main__":
    asyncio.run(main())
