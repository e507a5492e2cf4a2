"""How long a fork takes per child: 16 boxes that begin with the files of one.

    python benchmarks/sandbox_fork.py [--rounds 10] [--children 16]

From the SDK call to all children in the caller, the snapshot of the parent included, divided by the
children; "ready" ends when every child has answered a first command. Half of the rounds have a
changed parent (a new layer), half an unchanged one. Prints and writes
``benchmarks/results/sandbox_fork.csv``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time

from results import write_results

from baleen.sandbox import Sandbox

Row = dict[str, str | int | float]


async def forks(rounds: int, children: int) -> list[Row]:
    made: dict[str, list[float]] = {}
    async with await Sandbox.create() as box:
        await box.run(["true"])
        for number in range(rounds):
            is_changed = number % 2 == 0
            if is_changed:
                await box.files.write("/root/number", str(number).encode())
            start = time.perf_counter()
            boxes = await box.fork(children)
            forked = time.perf_counter()
            await asyncio.gather(*(child.run(["true"]) for child in boxes))
            ready = time.perf_counter()
            await asyncio.gather(*(child.close() for child in boxes))
            parent = "changed" if is_changed else "unchanged"
            made.setdefault(f"fork, {parent} parent", []).append(forked - start)
            made.setdefault(f"fork to ready, {parent} parent", []).append(ready - start)
            await asyncio.sleep(0.2)
    return [row(what, children, times) for what, times in sorted(made.items())]


def row(what: str, children: int, times_s: list[float]) -> Row:
    per_child_ms = sorted(1000 * t / children for t in times_s)
    found: Row = {"what": what, "children": children, "count": len(per_child_ms)}
    found |= {"min_ms": round(per_child_ms[0], 2)}
    found |= {"p50_ms": round(statistics.median(per_child_ms), 2)}
    found |= {"max_ms": round(per_child_ms[-1], 2), "load": round(os.getloadavg()[0], 2)}
    print("  ".join(f"{key} {value}" for key, value in found.items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--children", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        os.environ.update(BALEEN_HOME=home, BALEEN_SANDBOX_IDLE_EXIT_S="1")
        rows = asyncio.run(forks(options.rounds, options.children))
        time.sleep(2.5)  # the edge leaves by itself
    write_results("sandbox_fork", rows)


if __name__ == "__main__":
    main()
