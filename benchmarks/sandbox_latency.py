"""How long a sandbox takes: a whole life, a warm claim, a command in a live box, a function call.

    python benchmarks/sandbox_latency.py [--rounds 200] [--ladder 1 8 64]

From the SDK call to the result's bytes in the caller, with full isolation, default limits and a
synced log. A whole life is create + first command + destroy, one after the other without a pause:
the removal of the last box and the building of the next spare go on beside it. A warm claim is
create + first command where spares wait and nothing else goes on: closing the box, and waiting for
the spares to be complete again, are outside the time. It is measured after that pause, in which all
processes have fallen asleep, and for all waiting spares in a row. bubblewrap, runc and Docker are
measured in the same run where they are installed; peers start one process at a time from this
script and get the same command (`true`), no network, and for runc a read-only view of the host.
Prints and writes ``benchmarks/results/sandbox_latency.csv``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from results import machine, write_results

from baleen.sandbox import Sandbox
from baleen.sandbox.edge import POOL_SIZE
from baleen.sandbox.home import Home

Row = dict[str, str | int | float]
HOST_VIEW = ["usr", "bin", "lib", "lib64"]


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def row(what: str, who: str, width: int, times_s: list[float], total_s: float) -> Row:
    times_ms = [t * 1000 for t in times_s]
    return {
        "what": what,
        "who": who,
        "at_once": width,
        "count": len(times_s),
        "p50_ms": round(statistics.median(times_ms), 3),
        "p95_ms": round(percentile(times_ms, 0.95), 3),
        "p99_ms": round(percentile(times_ms, 0.99), 3),
        "per_s": round(len(times_s) / total_s, 1),
        "load": round(os.getloadavg()[0], 2),
    }


async def timed(
    width: int, rounds: int, work: Callable[[int], Awaitable[object]]
) -> tuple[list[float], float]:
    """Runs `work` `rounds` times, `width` of them at once; returns each time and the whole."""
    times: list[float] = []

    async def lane(number: int) -> None:
        for _ in range(max(1, rounds // width)):
            start = time.perf_counter()
            await work(number)
            times.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(lane(number) for number in range(width)))
    return times, time.perf_counter() - start


async def warm_claims(rounds: int, in_a_row: int) -> list[float]:
    """Create and first command, so many in a row where all spares are ready."""
    times = []
    for _ in range(rounds // in_a_row):
        await spares_are_ready()
        boxes = []
        for _ in range(in_a_row):
            start = time.perf_counter()
            boxes.append(await Sandbox.create())
            await boxes[-1].run(["true"])
            times.append(time.perf_counter() - start)
        await asyncio.gather(*(box.close() for box in boxes))
    return times


async def spares_are_ready() -> None:
    """Waits until the boxes that nobody owns are as many as the edge keeps, and no more are going.

    The socket of a box goes with it; only what somebody owns has a log.
    """
    boxes, calm = Home.default().boxes, 0
    while calm < 3:
        await asyncio.sleep(0.02)
        sockets = list(boxes.glob("*/agent.sock"))
        spares = sum(not socket.with_name("log").is_symlink() for socket in sockets)
        owned = len(await Sandbox.list())
        calm = calm + 1 if spares == POOL_SIZE and len(sockets) == spares + owned else 0


async def whole_life(_: int) -> None:
    async with await Sandbox.create() as box:
        await box.run(["true"])


async def ours(rounds: int, ladder: list[int]) -> list[Row]:
    rows = []
    keeper = await Sandbox.create()  # keeps the connection open, as a program with boxes has it
    for width in ladder:
        times, total = await timed(width, rounds, whole_life)
        rows.append(row("create + exec + destroy", "baleen", width, times, total))
        boxes = [await Sandbox.create() for _ in range(width)]
        times, total = await timed(width, rounds, lambda n, boxes=boxes: boxes[n].run(["true"]))
        rows.append(row("exec in a live box", "baleen", width, times, total))
        await asyncio.gather(*(box.close() for box in boxes))
    for in_a_row in (1, POOL_SIZE):
        times = await warm_claims(rounds, in_a_row)
        name = "warm claim + exec" if in_a_row == 1 else f"the same, {in_a_row} in a row"
        rows.append(row(name, "baleen", 1, times, sum(times)))
    async with await Sandbox.create(backend="function") as functions:
        await functions.call(abs_of, 1)
        times, total = await timed(1, rounds, lambda _: functions.call(abs_of, -1))
        rows.append(row("function call", "baleen", 1, times, total))
    await keeper.close()
    return rows


def abs_of(number: int) -> int:
    return abs(number)


def bubblewrap() -> list[str]:
    view = [
        part
        for name in HOST_VIEW
        if Path("/", name).exists()
        for part in ("--ro-bind", f"/{name}", f"/{name}")
    ]
    return [
        "bwrap",
        "--unshare-all",
        *view,
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "true",
    ]


@contextmanager
def runc_bundle() -> Iterator[Path]:
    """A bundle whose root shows the host's programs read-only."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder)
        (bundle / "rootfs").mkdir()
        subprocess.run(["runc", "spec"], cwd=bundle, check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"] |= {"args": ["true"], "terminal": False}
        config["mounts"] += [
            {
                "destination": f"/{name}",
                "type": "bind",
                "source": f"/{name}",
                "options": ["rbind", "ro"],
            }
            for name in HOST_VIEW
            if Path("/", name).exists()
        ]
        config["root"]["readonly"] = False
        (bundle / "config.json").write_text(json.dumps(config))
        yield bundle


def peer(
    name: str, rounds: int, command: Callable[[int], list[str]], cwd: Path | None = None
) -> list[Row]:
    times = []
    start = time.perf_counter()
    for number in range(rounds):
        begin = time.perf_counter()
        done = subprocess.run(command(number), cwd=cwd, capture_output=True)
        if done.returncode:
            print(f"{name} left out: {done.stderr.decode().strip()[-200:]}")
            return []
        times.append(time.perf_counter() - begin)
    return [row("create + exec + destroy", name, 1, times, time.perf_counter() - start)]


def peers(rounds: int) -> list[Row]:
    rows = []
    if shutil.which("bwrap"):
        rows += peer("bubblewrap", rounds, lambda _: bubblewrap())
    if shutil.which("runc"):
        with runc_bundle() as bundle:
            rows += peer(
                "runc", rounds, lambda n: ["runc", "run", f"bench-{os.getpid()}-{n}"], bundle
            )
    if (
        shutil.which("docker")
        and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    ):
        image = "debian:stable-slim"
        rows += peer(
            "docker",
            max(10, rounds // 10),
            lambda _: ["docker", "run", "--rm", "--network=none", image, "true"],
        )
    return rows


def show(rows: list[Row]) -> None:
    base = next(float(r["p50_ms"]) for r in rows if r["who"] == "baleen" and r["at_once"] == 1)
    head = ("at once", "p50_ms", "p95_ms", "p99_ms", "per_s", "ratio")
    print(f"{'what':26}{'who':12}" + "".join(f"{name:>10}" for name in head))
    for r in rows:
        is_peer = r["who"] != "baleen"
        ratio = f"{float(r['p50_ms']) / base:.1f}x" if is_peer else ""
        cells = (*(r[key] for key in ("at_once", "p50_ms", "p95_ms", "p99_ms", "per_s")), ratio)
        print(f"{r['what']:26}{r['who']:12}" + "".join(f"{cell:>10}" for cell in cells))
    where = machine()
    print(
        f"{where['cpu']}, {where['cores']} cores, Linux {where['kernel']}, "
        f"commit {where['commit']}, load {rows[0]['load']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--ladder", type=int, nargs="+", default=[1, 8, 64])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        os.environ.update(BALEEN_HOME=home, BALEEN_SANDBOX_IDLE_EXIT_S="1")
        rows = asyncio.run(ours(options.rounds, options.ladder)) + peers(
            max(20, options.rounds // 4)
        )
        show(rows)
        time.sleep(2.5)  # the edge leaves by itself
    write_results("sandbox_latency", rows)


if __name__ == "__main__":
    main()
