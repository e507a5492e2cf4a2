"""Does a command run twice, or an acknowledged one get lost, when anything may die at any time?

    python benchmarks/sandbox_crash.py [--kills 10000] [--workers 6] [--seed 1] [--json]

Workers run numbered commands in boxes of their own; each command appends its number to a file on
the host, so a second run shows. Meanwhile kill -9 strikes, drawn at random: a worker (the client),
the edge, a box's process 1 (the agent), the launcher. A worker that comes back asks for the
command under way again, under the same key. In the end, for every worker:

- no number stands twice in the file of effects;
- every acknowledged number stands there;
- a number that stands there without an acknowledgement was reported in doubt;
- every trajectory log verifies, and nothing of the boxes is left on the host.

Exit code 1 if any of this is false. Writes ``benchmarks/results/sandbox_crash.csv``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.context
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from results import write_results

from baleen.sandbox import BoxGoneError, InDoubtError, Sandbox, recall
from baleen.sandbox.home import Home
from baleen.sandbox.trajectory import verify

WEIGHTS = {"client": 45, "edge": 30, "agent": 15, "launcher": 10}
COMMAND = 'echo "$1" >> /effects/ran; sleep "0.0$2"; wc -l < /effects/ran'
FINISH_TIMEOUT_S = 60.0


@dataclass
class Notes:
    """What a worker has seen, line by line in a file that outlives it."""

    path: Path
    acknowledged: list[int] = field(default_factory=list)
    in_doubt: list[int] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Notes:
        notes = cls(path)
        for line in path.read_text().splitlines() if path.exists() else []:
            kind, value = line.split()
            if kind == "box":
                notes.boxes.append(value)
            else:
                (notes.acknowledged if kind == "ack" else notes.in_doubt).append(int(value))
        return notes

    def add(self, kind: str, value: str | int) -> None:
        """One write of one short line: a kill leaves it whole or absent."""
        with self.path.open("a") as file:
            file.write(f"{kind} {value}\n")

    @property
    def next_number(self) -> int:
        return 1 + max([0, *self.acknowledged, *self.in_doubt])


class Worker:
    """One client with its box; any instance continues where the last one was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.effects = folder / "effects"
        self.notes = Notes.read(folder / "notes")
        self.box: Sandbox | None = None

    async def work(self, num_commands: int | None = None) -> None:
        """Runs the next commands, for ever if no number is given."""
        number = self.notes.next_number
        end = None if num_commands is None else number + num_commands
        while number != end:
            try:
                await self._run(number)
                self.notes.add("ack", number)
            except InDoubtError:
                self.notes.add("doubt", number)
            except BoxGoneError:  # nothing ran; a new box takes the same number
                self.box = None
                continue
            number += 1

    async def _run(self, number: int) -> None:
        key = f"step-{number}"
        if self.box is None and self.notes.boxes:
            with contextlib.suppress(BoxGoneError):
                self.box = await Sandbox.attach(self.notes.boxes[-1])
        if self.box is None:
            if self.notes.boxes and recall(self._log(self.notes.boxes[-1]), key) is not None:
                return
            self.box = await self._new_box()
        command = ["sh", "-c", COMMAND, "crash", str(number), str(number % 3)]
        await self.box.run(command, key=key)

    def _log(self, box_id: str) -> Path:
        return Home.default().logs / f"{box_id}.log"

    async def _new_box(self) -> Sandbox:
        box = await Sandbox.create(
            mounts=[(self.effects, "/effects", "rw")], ttl_idle_s=600, job="crash"
        )
        self.notes.add("box", box.id)
        self.notes.boxes.append(box.id)
        return box


def run_worker(folder: str, num_commands: int | None) -> None:
    asyncio.run(Worker(Path(folder)).work(num_commands))


class Fleet:
    """The worker processes; a killed one is replaced, one that fails by itself is reported."""

    def __init__(self, folder: Path, num_workers: int) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["baleen.sandbox", __name__])
        self.folders = [folder / f"worker-{number}" for number in range(num_workers)]
        for each in self.folders:
            (each / "effects").mkdir(parents=True)
            (each / "effects").chmod(0o777)  # the box writes as its own user
        self._processes = [self._start(each) for each in self.folders]

    def _start(
        self, folder: Path, num_commands: int | None = None
    ) -> multiprocessing.context.ForkServerProcess:
        process = self._context.Process(target=run_worker, args=(str(folder), num_commands))
        process.start()
        return process

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def kill(self, index: int) -> None:
        self._end(index)
        self._processes[index] = self._start(self.folders[index])

    def _end(self, index: int) -> None:
        process = self._processes[index]
        if process.exitcode is not None:
            raise SystemExit(f"worker {index} ended by itself with exit code {process.exitcode}")
        process.kill()
        process.join()

    def finish(self) -> None:
        """Ends the workers, then has each command that was under way asked for once more."""
        for index in range(len(self.folders)):
            self._end(index)
        self._processes = [self._start(each, num_commands=1) for each in self.folders]
        for index, process in enumerate(self._processes):
            process.join(FINISH_TIMEOUT_S)
            if process.exitcode != 0:
                raise SystemExit(f"worker {index} could not finish: exit code {process.exitcode}")


class Killer:
    """Draws who dies next."""

    def __init__(self, home: Home, fleet: Fleet, seed: int) -> None:
        self._home = home
        self._fleet = fleet
        self._chance = random.Random(seed)
        self.kills: Counter[str] = Counter()

    def strike(self) -> None:
        (kind,) = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if kind == "client":
            self._fleet.kill(self._chance.randrange(len(self._fleet.folders)))
        else:
            victims = {"edge": self._edges, "agent": self._agents, "launcher": self._launchers}
            found = victims[kind]()
            if not found:
                return  # it is down at the moment
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._chance.choice(found), signal.SIGKILL)
        self.kills[kind] += 1

    def _edges(self) -> list[int]:
        return self._processes(b"baleen.sandbox.edge")

    def _launchers(self) -> list[int]:
        """The launcher is the edge's child; what it made lives below it or on its own."""
        edges = self._edges()
        zygotes = self._processes(b"zygote")
        return [pid for pid in zygotes if _parent(pid) in edges]

    def _agents(self) -> list[int]:
        """Process 1 of each box, as the edge tells it; asking starts an edge if there is none."""
        return [box["pid"] for box in asyncio.run(Sandbox.list())]

    def _processes(self, word: bytes) -> list[int]:
        mark = f"BALEEN_HOME={self._home.root}\0".encode()
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if word not in (folder / "cmdline").read_bytes():
                    continue
                if mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@dataclass
class Verdict:
    """What the files say in the end; the first three must be 0."""

    ran_twice: int = 0
    lost: int = 0
    """Acknowledged, and no effect to be found."""
    unreported: int = 0
    """An effect that was neither acknowledged nor reported in doubt."""
    in_doubt: int = 0
    in_doubt_ran: int = 0
    commands: int = 0
    boxes: int = 0
    log_records: int = 0

    @property
    def is_good(self) -> bool:
        return not (self.ran_twice or self.lost or self.unreported)

    def add(self, folder: Path, logs: Path) -> None:
        """Judges one worker. A log that does not verify raises its own error."""
        notes = Notes.read(folder / "notes")
        ran = Counter(map(int, (folder / "effects" / "ran").read_text().split()))
        acknowledged, in_doubt = set(notes.acknowledged), set(notes.in_doubt)
        self.ran_twice += sum(count > 1 for count in ran.values())
        self.lost += len(acknowledged - ran.keys())
        self.unreported += len(ran.keys() - acknowledged - in_doubt)
        self.in_doubt += len(in_doubt)
        self.in_doubt_ran += len(in_doubt & ran.keys())
        self.commands += len(acknowledged)
        self.boxes += len(notes.boxes)
        self.log_records += sum(verify(logs / f"{box_id}.log") for box_id in notes.boxes)


def crash(home: Home, folder: Path, options: argparse.Namespace) -> tuple[Counter[str], Verdict]:
    """Kills until the number is reached; returns how often each kind died, and the verdict."""
    fleet = Fleet(folder, options.workers)
    killer = Killer(home, fleet, options.seed)
    chance = random.Random(options.seed + 1)
    started = time.monotonic()
    try:
        while (done := killer.kills.total()) < options.kills:
            time.sleep(chance.random() * options.max_pause_s)
            killer.strike()
            if sys.stderr.isatty() and done % 20 == 0:
                print(f"\r{done}/{options.kills} kills", end="", file=sys.stderr, flush=True)
        fleet.finish()
    finally:
        fleet.stop()
        asyncio.run(Sandbox.reap("crash"))
    verdict = Verdict()
    for each in fleet.folders:
        verdict.add(each, home.logs)
    print(f"\r{killer.kills.total()} kills, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return killer.kills, verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-pause-s", type=float, default=0.1, help="between two kills")
    parser.add_argument("--json", action="store_true", help="print one object, write no CSV")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash") as folder:
        # A home given from outside stays; the CI test looks there for what is left behind.
        os.environ.setdefault("BALEEN_HOME", f"{folder}/home")
        os.environ["BALEEN_SANDBOX_IDLE_EXIT_S"] = "1"
        kills, verdict = crash(Home.default(), Path(folder), options)
        time.sleep(2.5)  # the edge leaves by itself
    row = {**{f"killed_{kind}": kills[kind] for kind in WEIGHTS}, **asdict(verdict)}
    if options.json:
        print(json.dumps(row))
    else:
        for name, value in row.items():
            print(f"{name:18}{value:>10}")
        write_results("sandbox_crash", [row])
    return 0 if verdict.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
