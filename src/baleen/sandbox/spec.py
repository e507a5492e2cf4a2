"""What a box is to be, checked before anything starts, and what a command gave back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baleen.errors import UsageError

BACKENDS = ("function", "container", "gvisor", "microvm", "vm")
MOUNT_MODES = ("ro", "rw")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

MAX_OUTPUT_BYTES = 10 << 20
"""Default cap per output stream: agents' tools rarely mean to print more, floods often do."""

HARD_MAX_OUTPUT_BYTES = 28 << 20
"""Both streams of a result must fit one frame on the edge's socket."""

HARD_MAX_INPUT_BYTES = 28 << 20
"""Standard input given at once. More goes through a file, or piece by piece."""

HARD_MAX_COMMAND_BYTES = 30 << 20
"""A command with its input and variables must fit one frame to process 1, which is 32 MiB."""


@dataclass(frozen=True)
class Allowlist:
    """Hosts and ports that a box may reach, each ``"name:port"`` or ``"*.name:port"``."""

    hosts: tuple[str, ...]

    def __init__(self, hosts: Sequence[str]) -> None:
        if isinstance(hosts, str):
            raise UsageError(f"Allowlist takes a list of entries, not the text {hosts!r}")
        for host in hosts:
            name, _, port = host.rpartition(":") if isinstance(host, str) else ("", "", "")
            if not name or not port.isdecimal() or not 0 < int(port) < 65536:
                raise UsageError(
                    f"allowlist entry {host!r} is not name:port", remedy='e.g. "example.org:443"'
                )
        object.__setattr__(self, "hosts", tuple(hosts))

    def allows(self, host: str, port: int) -> bool:
        """Whether an entry names this host and port; ``*.name`` stands for all below a name."""
        name = host.lower().rstrip(".")
        for entry in self.hosts:
            allowed, _, number = entry.lower().rpartition(":")
            allowed = allowed.strip("[]")
            is_below = allowed.startswith("*.") and name.endswith(allowed[1:])
            if int(number) == port and (name == allowed or is_below):
                return True
        return False


@dataclass(frozen=True)
class Mount:
    """A host folder or file shown at a path of the box."""

    source: str
    target: str
    mode: str = "ro"


@dataclass(frozen=True)
class BoxSpec:
    """Everything about a box that its caller chooses."""

    backend: str = "container"
    image: str = "host"
    workspace: str | None = None
    toolkits: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    cpu: float = 1.0
    memory_mb: int = 512
    disk_mb: int = 1024
    pids: int = 256
    network: str | tuple[str, ...] = "none"
    """"none", "public", or the entries of an allowlist."""
    ttl_idle_s: float = 300
    job: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    trajectory: str | None = None
    one_off: bool = False
    """Nobody will ask for its like, so none is built ahead."""
    python: tuple[str, ...] = ()
    """Backend "function": the interpreter and its import path."""

    def __post_init__(self) -> None:
        _in_range("cpu", self.cpu, 0.01, 10_000)
        _in_range("ttl_idle_s", self.ttl_idle_s, 0, 1e9)
        for name, least in (("memory_mb", 8), ("disk_mb", 1), ("pids", 4)):
            _in_range(name, getattr(self, name), least, 1 << 30, whole=True)
        if self.backend not in BACKENDS:
            raise UsageError(
                f"unknown backend {self.backend!r}", remedy=f"one of {', '.join(BACKENDS)}"
            )
        for mount in self.mounts:
            _check_mount(mount)

    def to_wire(self) -> dict[str, Any]:
        mounts = [{"source": m.source, "target": m.target, "mode": m.mode} for m in self.mounts]
        return {**self.__dict__, "mounts": mounts}

    @property
    def shape(self) -> tuple[object, ...]:
        """All that a box must be built for; what may still be unknown then is left out."""
        given = self.__dict__
        return tuple(given[name] for name in given if name not in _NOT_BUILT)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> BoxSpec:
        mounts = tuple(Mount(**mount) for mount in data["mounts"])
        lists = {name: tuple(data.get(name, ())) for name in ("python", "toolkits")}
        network = data["network"]
        if not isinstance(network, str):
            lists["network"] = tuple(network)
        return cls(**{**data, **lists, "mounts": mounts})


_NOT_BUILT = frozenset({"network", "ttl_idle_s", "job", "labels", "trajectory", "one_off"})


def _in_range(name: str, value: float, least: float, most: float, *, whole: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise UsageError(f"{name}={value!r} is not {'a whole number' if whole else 'a number'}")
    if not least <= value <= most:
        raise UsageError(f"{name}={value!r} is not in {least:g}..{most:g}")


def _check_mount(mount: Mount) -> None:
    if mount.mode not in MOUNT_MODES:
        raise UsageError(f"mount mode {mount.mode!r} of {mount.source}", remedy="use 'ro' or 'rw'")
    if not mount.target.startswith("/") or mount.target.rstrip("/") == "":
        raise UsageError(f"mount target {mount.target!r} is not an absolute path below /")
    if not Path(mount.source).exists():
        raise UsageError(f"mount source {mount.source} does not exist")


def check_id(box_id: str) -> str:
    """Returns the id, or raises UsageError where it could not be a folder's name."""
    if not _ID.fullmatch(box_id):
        raise UsageError(f"box id {box_id!r} is not of lower-case letters, digits and dashes")
    return box_id


@dataclass(frozen=True)
class RunResult:
    """What a command left: its exit code and output, and how it came about."""

    exit_code: int
    """As the shell gives it: 128 + n after signal n, 124 after the timeout, 127 when not found."""
    stdout: bytes
    stderr: bytes
    duration_s: float
    truncated: bool
    """Output beyond ``max_output_bytes`` of a stream was thrown away."""
    timed_out: bool
    replayed: bool = False
    """The command was not run for this call: the result is the recorded one of the same key."""
    out_of_memory: bool = False
    """It failed, and the kernel has killed for memory in its box: give it a larger memory_mb."""

    @property
    def text(self) -> str:
        """Standard output as text; undecodable bytes become U+FFFD."""
        return self.stdout.decode("utf-8", "replace")

    def again(self) -> RunResult:
        """The same for a caller who came later."""
        return replace(self, replayed=True)

    def to_wire(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> RunResult:
        return cls(**data)


def resource_limits(spec: BoxSpec) -> list[tuple[int, int]]:
    """(resource, value) pairs of setrlimit for the commands of a box."""
    rlimit_core, rlimit_nofile, rlimit_memlock = 4, 7, 8
    return [(rlimit_core, 0), (rlimit_nofile, 4096), (rlimit_memlock, 64 << 10)]
