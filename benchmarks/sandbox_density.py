"""How many boxes one host holds: idle ones by memory, live ones by the time of a command.

    python benchmarks/sandbox_density.py [--idle 2000] [--live 500] [--duty 0.05] [--seconds 30]

Idle: makes the boxes and reads how much memory the host has less, in all and by box. Live: each box
spins in the background, 50 ms at a time, for a share of time that is `--duty`, while commands go to
boxes drawn at random, one after the other; their times are reported. Writes
``benchmarks/results/sandbox_density.csv``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from leftovers import settled
from results import write_results

from baleen.sandbox import Sandbox
from baleen.sandbox.home import Home

AT_ONCE = 32
PULSE_S = 0.05
SPIN = """
import time
time.sleep({delay})
while True:
    end = time.process_time() + {pulse}
    while time.process_time() < end: pass
    time.sleep({rest})
"""


def available_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:"))


async def make(count: int) -> list[Sandbox]:
    """Boxes with default limits but little memory each, some at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> Sandbox:
        async with gate:
            return await Sandbox.create(memory_mb=128, ttl_idle_s=3600)

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def close(boxes: list[Sandbox]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(box: Sandbox) -> None:
        async with gate:
            await box.close()

    await asyncio.gather(*map(one, boxes))


async def idle(count: int) -> dict[str, float]:
    before, start = available_mb(), time.perf_counter()
    boxes = await make(count)
    took_s, used_mb = time.perf_counter() - start, before - available_mb()
    answers = await boxes[-1].run(["echo", "here"])
    assert answers.text == "here\n"
    await close(boxes)
    return {
        "boxes": count,
        "creates_per_s": round(count / took_s, 1),
        "memory_mb": round(used_mb),
        "mb_per_box": round(used_mb / count, 2),
    }


async def live(count: int, seconds: float, duty: float) -> dict[str, float]:
    chance, rest_s = random.Random(1), PULSE_S / duty - PULSE_S
    boxes = await make(count)
    for box in boxes:
        spin = SPIN.format(delay=chance.random() * PULSE_S / duty, pulse=PULSE_S, rest=rest_s)
        await box.shell(f"python3 -S -c '{spin}' > /dev/null 2>&1 &")
    times_ms, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        box, start = chance.choice(boxes), time.perf_counter()
        await box.run(["true"])
        times_ms.append(1000 * (time.perf_counter() - start))
        await asyncio.sleep(0.01)
    await close(boxes)
    times_ms.sort()
    return {
        "boxes": count,
        "commands": len(times_ms),
        "exec_p50_ms": round(times_ms[len(times_ms) // 2], 2),
        "exec_p99_ms": round(times_ms[int(0.99 * len(times_ms))], 2),
        "duty": duty,
        "processors_asked": round(duty * count, 2),
    }


async def both(options: argparse.Namespace) -> list[dict[str, float | str]]:
    rows = []
    keeper = await Sandbox.create()
    for what, work in (
        ("idle", idle(options.idle)),
        ("live", live(options.live, options.seconds, options.duty)),
    ):
        row: dict[str, float | str] = {"what": what, **await work}
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        rows.append(row)
    await keeper.close()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idle", type=int, default=2000)
    parser.add_argument("--live", type=int, default=500)
    parser.add_argument("--duty", type=float, default=0.05, help="of one processor, per live box")
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="density", ignore_cleanup_errors=True) as folder:
        os.environ.update(
            BALEEN_HOME=f"{folder}/home",
            BALEEN_SANDBOX_IDLE_EXIT_S="1",
            BALEEN_SANDBOX_MAX_BOXES=str(max(options.idle, options.live) + 2 * AT_ONCE),
        )
        rows = asyncio.run(both(options))
        left = settled(Home.default())
    print(left)
    columns = sorted({name for row in rows for name in row} - {"what", "boxes"})
    even = [
        {"what": r["what"], "boxes": r["boxes"], **{c: r.get(c, "") for c in columns}} for r in rows
    ]
    write_results("sandbox_density", [{**row, **left} for row in even])
    return 1 if any(left.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
