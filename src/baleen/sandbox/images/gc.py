"""Garbage collection: what no name, no box and no writer needs goes.

Roots are the images that have a name, the layers that a living box has noted in its ``box.json``,
and the build cache of the last days. What was added or used since the oldest living writer began
stays as well. Boxes are noted under the store's shared lock, the decision is taken under the
exclusive one; so a box has its layers noted, or finds out that they are gone before it starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..home import Home
from .errors import ImageError, ImageNotFoundError
from .store import Store

CACHE_DAYS = 7.0
CLOCK_TICK_S = 0.1
"""File systems stamp some changes with the time of the last clock tick, others exactly: what was
touched after a lease began may look older than the lease, by up to a tick (1 to 10 ms)."""


@dataclass
class Collected:
    """What a collection removed (or would remove)."""

    images: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    cached_steps: int = 0
    freed_bytes: int = 0


def collect(home: Home, *, cache_days: float = CACHE_DAYS, dry_run: bool = False) -> Collected:
    """Removes garbage; may run beside anything, at any time.

    Args:
        home: whose store.
        cache_days: how long an unused build step stays.
        dry_run: only say what would go.
    """
    store = Store(home.images)
    with store.exclusive():
        return _Collector(home, store, cache_days, dry_run).run()


class _Collector:
    def __init__(self, home: Home, store: Store, cache_days: float, dry_run: bool) -> None:
        self._home = home
        self._store = store
        self._oldest_cache = time.time() - cache_days * 86_400
        self._dry_run = dry_run
        self._found = Collected()
        self._horizon = self._oldest_lease()

    def run(self) -> Collected:
        images = set(self._store.names().values())
        layers = set(self._held_by_boxes())
        for path in self._each("cache"):
            self._cache_entry(path, images, layers)
        for path in self._each("manifests"):
            if path.name not in images and self._is_old(path):
                self._found.images.append(path.name)
                self._remove(path)
            else:
                layers |= self._layers_of(path.name)
        for path in self._each("layers"):
            digest = path.name.removesuffix(".erofs")
            if digest not in layers and self._is_old(path):
                self._found.layers.append(digest)
                self._remove(path)
        self._clear(layers)
        return self._found

    def _clear(self, layers: set[str]) -> None:
        """Unpacked copies and notes about layers that are gone, and what dead writers left."""
        for path in self._each("trees"):
            if path.name not in layers and self._is_old(path):
                self._remove(path)
        for path in self._each("converted"):
            with contextlib.suppress(FileNotFoundError):
                if not self._store.layer_path(path.read_text()).exists():
                    self._remove(path)
        for path in self._each("partial"):
            if self._is_old(path):
                self._remove(path)

    def _oldest_lease(self) -> float:
        """When the oldest living writer began; the leases of dead ones are removed."""
        oldest = float("inf")
        for path in self._each("leases"):
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                began = os.fstat(file.fileno()).st_mtime
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    oldest = min(oldest, began - CLOCK_TICK_S)
                else:
                    path.unlink(missing_ok=True)
        return oldest

    def _held_by_boxes(self) -> list[str]:
        """Layers of boxes that live, or may live: the note goes with the box."""
        held: list[str] = []
        for path in self._home.boxes.glob("*/box.json"):
            try:
                state = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            held += state.get("layers", [])
        return held

    def _cache_entry(self, path: Path, images: set[str], layers: set[str]) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if path.stat().st_mtime >= self._oldest_cache:
                layers |= {layer["digest"] for layer in json.loads(path.read_text())["layers"]}
                return
        if self._is_old(path):
            self._found.cached_steps += 1
            self._remove(path)

    def _layers_of(self, digest: str) -> set[str]:
        try:
            return {layer.digest for layer in self._store.image(digest).layers}
        except (ImageError, ImageNotFoundError):
            return set()

    def _each(self, folder: str) -> list[Path]:
        return sorted((self._store.root / folder).iterdir())

    def _is_old(self, path: Path) -> bool:
        try:
            return path.lstat().st_mtime < self._horizon
        except FileNotFoundError:
            return False

    def _remove(self, path: Path) -> None:
        self._found.freed_bytes += disk_bytes(path)
        if self._dry_run:
            return
        if path.is_dir():
            # Renamed first: a crash in the middle leaves garbage, not half a layer.
            aside = self._store.new_partial()
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def disk_bytes(path: Path) -> int:
    """What a file or folder takes on the disk."""
    try:
        meta = path.lstat()
        if not path.is_dir() or path.is_symlink():
            return meta.st_blocks * 512
        return sum(disk_bytes(below) for below in path.iterdir())
    except FileNotFoundError:
        return 0
