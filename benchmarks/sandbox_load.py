"""Many clients with random limits, commands, timeouts and deaths: does anything leak, hang or lie?

    python benchmarks/sandbox_load.py [--clients 64] [--minutes 10] [--processes 4] [--seed 1]

Every client makes boxes with random limits and runs random commands whose right result is known:
output, exit codes, timeouts, files, floods of output, memory and process bombs. Now and then a
client process is killed with -9 and replaced. Reported: wrong results, calls without an answer
within a minute, errors by code, times, and what is left on the host at the end. Exit code 1 if
anything was wrong, hung or left. Writes ``benchmarks/results/sandbox_load.csv``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.context
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from leftovers import settled
from results import write_results

from baleen.sandbox import BoxBusyError, CapacityError, Sandbox, SandboxError
from baleen.sandbox.home import Home

HANG_S = 60.0
KILL_EVERY_S = 5.0
T = TypeVar("T")
Check = Callable[[Sandbox, random.Random], Awaitable[bool]]


async def says_what_it_is_told(box: Sandbox, chance: random.Random) -> bool:
    word = chance.randbytes(chance.randrange(1, 200)).hex()
    return (await box.run(["echo", word])).text == f"{word}\n"


async def passes_the_exit_code_on(box: Sandbox, chance: random.Random) -> bool:
    code = chance.randrange(256)
    return (await box.run(["sh", "-c", f"exit {code}"])).exit_code == code


async def keeps_the_timeout(box: Sandbox, chance: random.Random) -> bool:
    result = await box.run(["sh", "-c", "sleep 30 & sleep 30"], timeout_s=0.05 + chance.random())
    if b"Cannot fork" in result.stderr:  # a bomb's children live on; the shell just fitted in
        raise BoxBusyError("the shell could not fork")
    return result.timed_out and result.exit_code == 124


async def keeps_files(box: Sandbox, chance: random.Random) -> bool:
    data = chance.randbytes(chance.randrange(100_000))
    await box.files.write("/tmp/file", data)
    return await box.files.read("/tmp/file") == data


async def bounds_the_output(box: Sandbox, chance: random.Random) -> bool:
    limit = chance.randrange(1, 50_000)
    result = await box.run(["head", "-c", "1000000", "/dev/zero"], max_output_bytes=limit)
    return result.truncated and len(result.stdout) <= limit


async def survives_a_memory_bomb(box: Sandbox, _: random.Random) -> bool:
    bomb = "x = []\nwhile True: x.append(bytes(10_000_000))"
    result = await box.run(["python3", "-c", bomb], timeout_s=20)
    return result.exit_code != 0 and (await box.run(["echo", "on"])).text == "on\n"


async def survives_a_process_bomb(box: Sandbox, _: random.Random) -> bool:
    bomb = "for i in $(seq 500); do sleep 2 & done; wait"
    result = await box.run(["sh", "-c", bomb], timeout_s=1.0)
    return result.exit_code != 0 and (await box.run(["echo", "on"])).text == "on\n"


CHECKS: dict[Check, int] = {
    says_what_it_is_told: 60,
    passes_the_exit_code_on: 20,
    keeps_the_timeout: 10,
    keeps_files: 10,
    bounds_the_output: 10,
    survives_a_memory_bomb: 1,
    survives_a_process_bomb: 1,
}
"""Each with how often it comes up."""


class Client:
    """One lane of work; notes what happened as lines of JSON."""

    def __init__(self, notes: Path, chance: random.Random, end_at: float) -> None:
        self._notes = notes
        self._chance = chance
        self._end_at = end_at

    async def work(self) -> None:
        while time.monotonic() < self._end_at:
            box = await self._timed("create", self._create())
            if box is None:
                await asyncio.sleep(0.2)
                continue
            for _ in range(self._chance.randrange(1, 12)):
                (check,) = self._chance.choices(list(CHECKS), list(CHECKS.values()))
                await self._timed(check.__name__, check(box, self._chance))
            await self._timed("close", box.close())

    async def _create(self) -> Sandbox:
        return await Sandbox.create(
            cpu=self._chance.choice([0.25, 0.5, 1, 2]),
            memory_mb=self._chance.choice([64, 128, 256]),
            disk_mb=self._chance.choice([16, 64]),
            pids=self._chance.choice([32, 64, 128]),
            ttl_idle_s=20,
            job="load",
        )

    async def _timed(self, what: str, work: Awaitable[T]) -> T | None:
        start = time.monotonic()
        outcome, answer, message = "ok", None, ""
        try:
            answer = await asyncio.wait_for(work, HANG_S)
            outcome = "wrong" if answer is False else "ok"
        except TimeoutError:
            outcome = "hung"
        except CapacityError:
            outcome = "refused"
        except BoxBusyError:  # what is right while a process bomb's children live on
            outcome = "busy"
        except SandboxError as error:
            outcome, message = error.code, error.message
        ms = 1000 * (time.monotonic() - start)
        note = {"what": what, "outcome": outcome, "ms": ms, "message": message}
        with self._notes.open("a") as file:
            file.write(json.dumps(note) + "\n")
        return answer


def run_clients(notes: str, count: int, seed: int, end_at: float) -> None:
    async def all_of_them() -> None:
        lanes = [Client(Path(notes), random.Random(seed * 1000 + n), end_at) for n in range(count)]
        await asyncio.gather(*(lane.work() for lane in lanes))

    asyncio.run(all_of_them())


def load(folder: Path, options: argparse.Namespace) -> tuple[list[dict[str, float | str]], int]:
    """Runs the clients, killing one process now and then; returns their notes and the kills."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["baleen.sandbox", __name__])
    chance = random.Random(options.seed)
    end_at = time.monotonic() + options.minutes * 60
    share, notes, started = options.clients // options.processes, folder / "notes", 0

    def start() -> multiprocessing.context.ForkServerProcess:
        nonlocal started
        started += 1
        arguments = (f"{notes}-{started}", share, options.seed + started, end_at)
        process = context.Process(target=run_clients, args=arguments)
        process.start()
        return process

    processes = [start() for _ in range(options.processes)]
    kills = 0
    while time.monotonic() < end_at - KILL_EVERY_S:
        time.sleep(KILL_EVERY_S)
        victim = chance.randrange(len(processes))
        processes[victim].kill()
        processes[victim].join()
        processes[victim] = start()
        kills += 1
    for process in processes:
        process.join(2 * HANG_S)
    lines = [line for path in folder.glob("notes-*") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")], kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load", ignore_cleanup_errors=True) as folder:
        os.environ.update(BALEEN_HOME=f"{folder}/home", BALEEN_SANDBOX_IDLE_EXIT_S="1")
        home = Home.default()
        notes, kills = load(Path(folder), options)
        asyncio.run(Sandbox.reap("load"))
        left = settled(home)
        rows = []
        for what in sorted({str(note["what"]) for note in notes}):
            of_it = [note for note in notes if note["what"] == what]
            times = sorted(float(note["ms"]) for note in of_it)
            outcomes = Counter(str(note["outcome"]) for note in of_it)
            known = {
                name: outcomes.pop(name, 0) for name in ("ok", "wrong", "hung", "refused", "busy")
            }
            others = " ".join(f"{code}:{count}" for code, count in sorted(outcomes.items()))
            middle, late = statistics.median(times), times[int(0.99 * len(times))]
            row = {"what": what, **known, "errors": others}
            rows.append({**row, "p50_ms": round(middle, 1), "p99_ms": round(late, 1)})
        for message in sorted({str(note["message"]) for note in notes if note["message"]}):
            print(message, file=sys.stderr)
        for row in rows:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
        print(f"{len(notes)} calls, {kills} client processes killed, {left}")
        write_results("sandbox_load", [{**row, "kills": kills, **left} for row in rows])
    bad = sum(row["wrong"] + row["hung"] for row in rows) + sum(left.values())
    return 1 if bad or any(row["errors"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
