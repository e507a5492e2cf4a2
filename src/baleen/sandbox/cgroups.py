"""Control groups: which ones this process may use, and how a box's limits are spelt in them.

Two drivers. v1 has a hierarchy per controller, and the own path can differ in each, so every one
is looked up in ``/proc/self/cgroup``. v2 has one hierarchy; a group that hands controllers down
may hold no processes itself, so boxes live below a group of their own. Hybrid hosts use v1 for
what v1 holds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import HostError
from .spec import BoxSpec

NEEDED = ("cpu", "memory", "pids")
_PERIOD_US = 100_000


@dataclass(frozen=True)
class Groups:
    """Where boxes' groups are made and which version's file names they have."""

    version: int
    parents: tuple[Path, ...]
    missing: tuple[str, ...] = ()

    def limits(self, spec: BoxSpec) -> list[tuple[str, str]]:
        """(file, value) pairs to write into a box's new group."""
        if not self.parents:
            return []
        wanted = self._v2_limits(spec) if self.version == 2 else self._v1_limits(spec)
        return [
            (name, value) for controller, name, value in wanted if controller not in self.missing
        ]

    def _v1_limits(self, spec: BoxSpec) -> list[tuple[str, str, str]]:
        memory = str(spec.memory_mb << 20)
        return [
            ("cpu", "cpu.cfs_period_us", str(_PERIOD_US)),
            ("cpu", "cpu.cfs_quota_us", str(int(spec.cpu * _PERIOD_US))),
            ("memory", "memory.limit_in_bytes", memory),
            ("pids", "pids.max", str(spec.pids)),
        ]

    def _v2_limits(self, spec: BoxSpec) -> list[tuple[str, str, str]]:
        return [
            ("cpu", "cpu.max", f"{int(spec.cpu * _PERIOD_US)} {_PERIOD_US}"),
            ("memory", "memory.max", str(spec.memory_mb << 20)),
            ("memory", "memory.swap.max", "0"),
            ("pids", "pids.max", str(spec.pids)),
        ]

    def release(self) -> None:
        """Removes the parents unless boxes still live in them."""
        for parent in self.parents:
            with contextlib.suppress(OSError):
                parent.rmdir()

    @property
    def description(self) -> str:
        if not self.parents:
            return f"no limits: {', '.join(self.missing)} not available to this user"
        lacking = f", without {', '.join(self.missing)}" if self.missing else ""
        return f"cgroup v{self.version}{lacking}"


def out_of_memory_kills(directories: Sequence[str]) -> int:
    """How often the kernel's memory killer has struck in a box; 0 where nothing counts it."""
    for directory in directories:
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(OSError):
                return _oom_kills(Path(directory, name).read_text())
    return 0


def _oom_kills(text: str) -> int:
    rows = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
    return int(rows.get("oom_kill", 0))


def find_groups(name: str, *, required: bool, root: Path = Path("/sys/fs/cgroup")) -> Groups:
    """Makes the group ``name`` that will hold the boxes' groups.

    Raises:
        HostError: a controller is missing and ``required`` (the edge runs as root).
    """
    own = own_paths(Path("/proc/self/cgroup").read_text())
    groups = _find_v1(root, own, name) or _find_v2(root, own, name)
    if required and groups.missing:
        raise HostError(
            f"control group controllers missing: {', '.join(groups.missing)}",
            remedy="mount or delegate them; BALEEN_SANDBOX_LIMITS=off runs without limits",
        )
    return groups


def own_paths(text: str) -> dict[str, str]:
    """Controller -> own path; the v2 hierarchy has the empty name."""
    paths = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _find_v1(root: Path, own: dict[str, str], name: str) -> Groups | None:
    if not any((root / controller / "cgroup.procs").exists() for controller in NEEDED):
        return None
    parents = []
    missing = []
    for controller in NEEDED:
        base = root / controller / own.get(controller, "/").lstrip("/")
        if (base / "cgroup.procs").exists() and _make(base / name):
            parents.append(base / name)
        else:
            missing.append(controller)
    return Groups(1, tuple(parents), tuple(missing))


def _find_v2(root: Path, own: dict[str, str], name: str) -> Groups:
    top = root / own.get("", "/").lstrip("/")
    # Root's boxes live at the top: the caller's own group holds processes and cannot delegate.
    for base in (root, top) if os.geteuid() == 0 else (top, top.parent):
        parent = base / name
        if (base / "cgroup.controllers").exists() and _make(parent):
            missing = [c for c in NEEDED if not (_enable(base, c) and _enable(parent, c))]
            if len(missing) < len(NEEDED):
                return Groups(2, (parent,), tuple(missing))
            parent.rmdir()
    return Groups(2, (), NEEDED)


def _make(path: Path) -> bool:
    try:
        path.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK)


def _enable(group: Path, controller: str) -> bool:
    try:
        (group / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError:
        return False
    return True
