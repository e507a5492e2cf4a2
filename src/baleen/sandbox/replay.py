"""A trajectory done again: are the results what the log says?

The recorded commands run in a fresh box on the very layers that the first record names, one after
the other in the order in which they were begun, and every result is compared. Clocks, the network
and scheduling are not virtualised: a command that shows the time, needs a site or races with
another one differs, and rightly so. What the files API wrote into the box is not in the log.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .errors import TrajectoryError, UnsupportedError
from .home import Home
from .images.base import Image
from .images.store import Store
from .provenance import provenance
from .results import result_of
from .sandbox import Sandbox
from .spec import BoxSpec, RunResult
from .trajectory import Kind, Record, read

COMPARED = ("exit_code", "timed_out", "truncated", "stdout", "stderr")
"""In this order; durations differ always."""

EXCERPT_BYTES = 80


class Command(NamedTuple):
    """A recorded command; without a result it is in doubt or never started."""

    seq: int
    key: str
    job: dict[str, Any]
    result: RunResult | None


@dataclass(frozen=True)
class Divergence:
    """The first place where doing it again gave something else."""

    seq: int
    """Of the command's INTENT."""
    key: str
    argv: tuple[str, ...]
    field: str
    expected: str | int | bool
    seen: str | int | bool


@dataclass(frozen=True)
class Verdict:
    """What came of doing a trajectory again."""

    commands: int
    """How many ran again and were compared."""
    divergence: Divergence | None
    remarks: tuple[str, ...]
    """What is different from the first time, or was left out."""


class Trajectory:
    """A log as a list of commands, with what is known of where they ran."""

    def __init__(self, path: Path) -> None:
        """Reads a log.

        Raises:
            TrajectoryError: there is none, it is damaged, or it does not begin as a box's does.
        """
        self.path = path
        records = list(read(path))
        if not records or records[0].kind is not Kind.OPEN:
            raise TrajectoryError(f"{path} does not begin with the making of a box")
        self.first: Mapping[str, Any] = records[0].payload
        self.commands = list(_commands(path, records))
        self.was_online = any(
            record.payload["network"] != "none"
            for record in records
            if record.kind is Kind.NET_POLICY
        )

    def remarks(self, now: Mapping[str, str]) -> Iterator[str]:
        """How this host differs from the one where it was recorded, as far as the log knows."""
        for name, value in self.first.get("provenance", {}).items():
            if now.get(name) != value:
                yield f"{name} was {value}, is {now.get(name)}"
        if (self.first.get("image") or {"base": "host"})["base"] == "host":
            yield "image 'host' shows this host's programs, which no digest pins"
        if self.was_online:
            yield "the box had a network; doing it again has none"


def _commands(path: Path, records: list[Record]) -> Iterator[Command]:
    ends = {
        record.payload["intent"]: record
        for record in records
        if record.kind in (Kind.RESULT, Kind.INFRA_FAIL) and "intent" in record.payload
    }
    for record in records:
        end = ends.get(record.seq)
        if record.kind is not Kind.INTENT or (end is not None and end.kind is Kind.INFRA_FAIL):
            continue
        result = result_of(path, end) if end is not None else None
        yield Command(record.seq, record.key or "", record.payload["job"], result)


async def verify(
    path: Path, home: Home | None = None, on_command: Callable[[Command], None] | None = None
) -> Verdict:
    """Runs a trajectory's commands again and compares, up to the first that differs.

    Raises:
        TrajectoryError: the log cannot be read.
        UnsupportedError: doing it again would change this host, or cannot be done from the log.
        ImageError: a layer that the log names is gone.
    """
    trajectory = Trajectory(path)
    image = _image(trajectory, home or Home.default())
    spec = _spec(trajectory, image)
    compared = 0
    async with await Sandbox._open("create", request=f"r{uuid.uuid4().hex}", spec=spec) as box:
        remarks = list(trajectory.remarks(provenance(str(box.capabilities()["limits"]))))
        for command in trajectory.commands:
            if command.result is None:
                remarks.append(f"record {command.seq} has no result; what follows was not done")
                break
            if command.job.get("stdin_open") or command.job.get("tty"):
                remarks.append(f"record {command.seq} took input that the log does not hold")
                break
            if on_command is not None:
                on_command(command)
            seen = await box._ask("run", key=f"replay-{command.seq}", job=command.job)
            compared += 1
            if (found := _difference(command, RunResult.from_wire(seen))) is not None:
                return Verdict(compared, found, tuple(remarks))
    return Verdict(compared, None, tuple(remarks))


def _image(trajectory: Trajectory, home: Home) -> str:
    """The image to stand on: the layers by their digests, whatever their names mean today."""
    data = trajectory.first.get("image")
    if data is None:
        raise TrajectoryError(f"{trajectory.path} does not say what its box stood on")
    image = Image.from_manifest(json.dumps(data).encode())
    if not image.layers:
        return image.base or ""
    store = Store(home.images)
    with store.writing():
        return store.add_image(image)


def _spec(trajectory: Trajectory, image: str) -> dict[str, Any]:
    given = trajectory.first["spec"]
    for mount in given["mounts"]:
        if mount["mode"] == "rw":
            raise UnsupportedError(
                f"the box of {trajectory.path} wrote to {mount['source']} of the host: doing it "
                "again would change that folder again",
                remedy="record with read-only mounts, or with an image that holds the files",
            )
        if not os.path.exists(mount["source"]):  # noqa: PTH110 - a text from the log
            raise UnsupportedError(f"{mount['source']}, a mount of the box, is not here")
    spec = BoxSpec.from_wire(given)
    spec = replace(spec, image=image, workspace=None, toolkits=(), network="none")
    return replace(spec, trajectory=None, job=None, labels={}, one_off=True).to_wire()


def _difference(command: Command, seen: RunResult) -> Divergence | None:
    assert command.result is not None
    for field in COMPARED:
        was, now = getattr(command.result, field), getattr(seen, field)
        if was == now:
            continue
        if isinstance(was, bytes):
            was, now = _excerpts(was, now)
        argv = tuple(map(str, command.job["argv"]))
        return Divergence(command.seq, command.key, argv, field, was, now)
    return None


def _excerpts(was: bytes, now: bytes) -> tuple[str, str]:
    """Both streams from the line on in which they part."""
    shorter = min(len(was), len(now))
    at = next((i for i in range(shorter) if was[i] != now[i]), shorter)
    start = was.rfind(b"\n", 0, at) + 1
    return _excerpt(was, start), _excerpt(now, start)


def _excerpt(stream: bytes, start: int) -> str:
    part = stream[start : start + EXCERPT_BYTES].decode("utf-8", "replace")
    return f"byte {start} of {len(stream)}: {part!r}"


__all__ = ["Command", "Divergence", "Trajectory", "Verdict", "verify"]
