"""Holding a box's processes still, whatever they are doing, and letting them go on.

v2 freezes the box's own group. v1 has a hierarchy of its own for it: a box gets a group there when
it is paused first and loses it when it goes on, so boxes that are never paused pay nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from .cgroups import Groups, own_paths
from .errors import LaunchError

ATTEMPTS = 1_000
POLL_S = 0.002
_ROOT = Path("/sys/fs/cgroup")


class Freezer:
    """The freezer of one edge's boxes; with ``enabled`` off it offers nothing, as some hosts do."""

    def __init__(
        self, groups: Groups, name: str, root: Path = _ROOT, *, enabled: bool = True
    ) -> None:
        self._groups = groups
        self._name = name
        self._enabled = enabled
        self._v1 = self._find_v1(root)

    def _find_v1(self, root: Path) -> Path | None:
        own = own_paths(Path("/proc/self/cgroup").read_text()).get("freezer")
        base = root / "freezer" / (own or "/").lstrip("/")
        return base if own is not None and (base / "cgroup.procs").exists() else None

    @property
    def is_available(self) -> bool:
        has_one = self._groups.version == 2 or self._v1 is not None
        return self._enabled and bool(self._groups.parents) and has_one

    def freeze(self, groups: list[str]) -> None:
        """Returns when every process in the box's groups stands still.

        Raises:
            LaunchError: the processes do not stop.
        """
        if self._groups.version == 2:
            Path(groups[0], "cgroup.freeze").write_text("1")
            _await(lambda: "frozen 1" in Path(groups[0], "cgroup.events").read_text(), groups)
            return
        place = self._place(groups)
        place.mkdir(parents=True, exist_ok=True)
        _move(groups[0], place)
        (place / "freezer.state").write_text("FROZEN")
        _move(groups[0], place)  # what was forked meanwhile freezes as it comes
        _await(lambda: (place / "freezer.state").read_text() == "FROZEN\n", groups)

    def thaw(self, groups: list[str]) -> None:
        """Lets the processes go on; does nothing where they do already."""
        if not groups:
            return
        if self._groups.version == 2:
            with contextlib.suppress(OSError):
                Path(groups[0], "cgroup.freeze").write_text("0")
            return
        place = self._place(groups)
        if self._v1 is None or not place.is_dir():
            return
        (place / "freezer.state").write_text("THAWED")
        for _ in range(ATTEMPTS):
            _move(str(place), self._v1)
            with contextlib.suppress(OSError):
                place.rmdir()
                return

    def is_frozen(self, groups: list[str]) -> bool:
        """Whether a box was left standing still, by an edge that has died."""
        if not groups:
            return False
        file = Path(groups[0], "cgroup.freeze")
        if self._groups.version == 2:
            return file.exists() and file.read_text().strip() == "1"
        return self._v1 is not None and self._place(groups).is_dir()

    def release(self) -> None:
        """Removes what is left of it, unless boxes stand still there."""
        if self._v1 is not None:
            for place in (self._v1 / self._name).glob("*/"):
                if not (place / "cgroup.procs").read_text():
                    place.rmdir()
            with contextlib.suppress(OSError):
                (self._v1 / self._name).rmdir()

    def _place(self, groups: list[str]) -> Path:
        assert self._v1 is not None
        return self._v1 / self._name / Path(groups[0]).name


def _move(source: str, target: Path) -> None:
    """Moves every process of a group, until none is left that is not there."""
    for _ in range(ATTEMPTS):
        there = set((target / "cgroup.procs").read_text().split())
        missing = set(Path(source, "cgroup.procs").read_text().split()) - there
        if not missing:
            return
        for pid in missing:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                (target / "cgroup.procs").write_text(pid)


def _await(condition: Callable[[], bool], groups: list[str]) -> None:
    for _ in range(ATTEMPTS):
        if condition():
            return
        time.sleep(POLL_S)
    raise LaunchError(f"the processes of {groups[0]} do not stand still")
