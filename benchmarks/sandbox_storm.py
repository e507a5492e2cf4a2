"""All clients die at once and come back: how long until each has its recorded results again?

    python benchmarks/sandbox_storm.py [--clients 200] [--commands 10] [--with-edge]

Every client is a process with a box of its own in which it has run keyed commands. All are killed
with -9 at one moment, with --with-edge the edge too. Then as many new processes attach to the boxes
and ask for all the commands again. ``recovery_s`` counts from the moment when all the new
processes, started and waiting, are let go at once, until the last one has every result;
``with_starts_s`` counts from the start of the first of them. A command that ran a second time
would show in its box. Writes ``benchmarks/results/sandbox_storm.csv``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from leftovers import settled
from results import write_results

from baleen.sandbox import Sandbox
from baleen.sandbox.home import Home

COMMAND = ["sh", "-c", "echo x >> /tmp/ran; wc -l < /tmp/ran"]
WAVE = 16
"""Clients that make their boxes at the same time; only the recovery is a storm."""


async def first_life(notes: str, commands: int) -> None:
    box = await Sandbox.create(memory_mb=64, ttl_idle_s=600, job="storm")
    for number in range(commands):
        await box.run(COMMAND, key=f"step-{number}")
    Path(notes).write_text(box.id)
    await asyncio.sleep(3600)


async def second_life(notes: str, commands: int) -> None:
    box = await Sandbox.attach(Path(notes).read_text())
    for number in range(commands):
        result = await box.run(COMMAND, key=f"step-{number}")
        if not result.replayed or result.text != f"{number + 1}\n":
            sys.exit(f"{box.id} ran step-{number} again")
    await box.detach()


def wait_for_go(gate: Path, notes: str) -> None:
    """Says that this process is there and waits until the gate's lock is given back."""
    with gate.open() as lock:
        Path(f"{notes}.waits").touch()
        fcntl.flock(lock, fcntl.LOCK_SH)


def live(life: str, notes: str, commands: int) -> None:
    if life == "second":
        wait_for_go(Path(notes).with_name("gate"), notes)
    asyncio.run({"first": first_life, "second": second_life}[life](notes, commands))


async def executions(boxes: list[str]) -> int:
    count = 0
    for box_id in boxes:
        box = await Sandbox.attach(box_id)
        count += int((await box.run(["sh", "-c", "wc -l < /tmp/ran"])).text)
        await box.close()
    return count


def storm(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["baleen.sandbox", __name__])
    notes = [folder / f"client-{number}" for number in range(options.clients)]

    def start(life: str, note: Path) -> multiprocessing.context.ForkServerProcess:
        process = context.Process(target=live, args=(life, str(note), options.commands))
        process.start()
        return process

    clients = []
    for first in range(0, len(notes), WAVE):
        wave = notes[first : first + WAVE]
        clients += [start("first", note) for note in wave]
        while not all(note.exists() for note in wave):
            time.sleep(0.01)
    if options.with_edge:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(Home.default().pid_file.read_text()), signal.SIGKILL)
    for client in clients:
        client.kill()
    for client in clients:
        client.join()
    start_at = time.perf_counter()
    with (folder / "gate").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        clients = [start("second", note) for note in notes]
        while len(list(folder.glob("*.waits"))) < len(notes):
            time.sleep(0.01)
        begin = time.perf_counter()
    for client in clients:
        client.join()
    end = time.perf_counter()
    failed = sum(client.exitcode != 0 for client in clients)
    ran = asyncio.run(executions([note.read_text() for note in notes]))
    return {
        "clients": options.clients,
        "commands": options.commands,
        "edge_killed": int(options.with_edge),
        "recovery_s": round(end - begin, 3),
        "with_starts_s": round(end - start_at, 3),
        "failed": failed,
        "ran_again": ran - options.clients * options.commands,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--commands", type=int, default=10)
    parser.add_argument("--with-edge", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm", ignore_cleanup_errors=True) as folder:
        os.environ.update(BALEEN_HOME=f"{folder}/home", BALEEN_SANDBOX_IDLE_EXIT_S="1")
        row = storm(Path(folder), options) | settled(Home.default())
    print("  ".join(f"{name} {value}" for name, value in row.items()))
    write_results("sandbox_storm", [row])
    return 1 if any(row[name] for name in row if name.startswith(("failed", "ran", "left"))) else 0


if __name__ == "__main__":
    sys.exit(main())
