"""Spares: cells built ahead of time, so that creating a box is taking one.

A spare serves one owner and is never returned. Which kinds are kept ready follows from what was
asked for lately: the first box of a kind is built on demand, its like find a spare.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from baleen.errors import SandboxError

from .cells import Cell, Cells
from .images.base import Overlay, Rootfs
from .spec import BoxSpec

FORGET_AFTER_S = 10.0
"""A kind of box that nobody asks for any longer gives its spares back after this."""

REFILL_DELAY_S = 0.002
"""Building waits this long after a box was taken: its owner's first command goes first."""

QUIET_S = 0.02
"""Where most spares are left, building waits until none was taken for this long."""

MAX_KINDS = 8

_log = logging.getLogger("baleen.sandbox.edge")


@dataclass
class _Kind:
    spec: BoxSpec
    overlays: tuple[Overlay, ...]
    cells: deque[Cell] = field(default_factory=deque)
    asked_at: float = 0.0
    building: int = 0
    failed: bool = False
    refill: asyncio.TimerHandle | None = None


class Spares:
    """The cells that wait, by shape."""

    def __init__(self, cells: Cells, size: int) -> None:
        self._cells = cells
        self._size = size
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def count(self) -> int:
        return sum(len(kind.cells) + kind.building for kind in self._kinds.values())

    def take(self, spec: BoxSpec, rootfs: Rootfs) -> Cell | None:
        """Takes a spare of the spec's shape and of these very layers, if one waits."""
        kind = self._kinds.get((spec.shape, rootfs.overlays))
        return kind.cells.popleft() if kind is not None and kind.cells else None

    def replace(self, spec: BoxSpec, rootfs: Rootfs) -> None:
        """Notes that a box of this shape was made, and has its like built."""
        shape = spec.shape, rootfs.overlays
        kind = self._kinds.get(shape)
        if kind is None:
            if len(self._kinds) >= MAX_KINDS or not self._size:
                return
            kind = self._kinds[shape] = _Kind(spec, rootfs.overlays)
        kind.asked_at = time.monotonic()
        kind.failed = False
        self._refill_later(kind)

    def _has_most(self, kind: _Kind) -> bool:
        return 4 * len(kind.cells) >= 3 * self._size

    def _refill_later(self, kind: _Kind) -> None:
        """Has the next spare built: soon where few are left, else when it is quiet."""
        loop = asyncio.get_running_loop()
        due = loop.time() + (QUIET_S if self._has_most(kind) else REFILL_DELAY_S)
        if kind.refill is not None:
            if kind.refill.when() < due and not self._has_most(kind):
                return
            kind.refill.cancel()
        kind.refill = loop.call_at(due, self._refill, kind)

    def _refill(self, kind: _Kind) -> None:
        kind.refill = None
        missing = self._size - len(kind.cells) - kind.building
        if missing > 0 and not kind.building and not kind.failed and not self._stopped:
            kind.building += 1
            self._start(self._build(kind))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _build(self, kind: _Kind) -> None:
        try:
            cell = await self._cells.build(kind.spec, ahead=True)
        except SandboxError as error:
            kind.failed = True  # whoever asks next builds for himself and gets the error
            _log.info("no spare: %s", error.message)
            return
        finally:
            kind.building -= 1
        is_wanted = self._kinds.get((kind.spec.shape, kind.overlays)) is kind
        if self._stopped or not is_wanted or cell.rootfs.overlays != kind.overlays:
            await self._cells.discard(cell)
            return
        cell.on_gone = lambda: self._lose(kind, cell)
        kind.cells.append(cell)
        if self._has_most(kind):
            self._refill_later(kind)
        else:
            self._refill(kind)

    def _lose(self, kind: _Kind, cell: Cell) -> None:
        """Somebody killed it."""
        kind.cells.remove(cell)
        self._start(self._cells.discard(cell))

    async def tick(self) -> None:
        """Gives back what nobody asks for."""
        now = time.monotonic()
        for shape, kind in list(self._kinds.items()):
            if now - kind.asked_at > FORGET_AFTER_S:
                del self._kinds[shape]
                await self._discard(kind)

    async def _discard(self, kind: _Kind) -> None:
        cells, kind.cells = list(kind.cells), deque()
        outcomes = await asyncio.gather(
            *(self._cells.discard(cell) for cell in cells), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                _log.warning("a spare was not removed: %s", outcome)

    async def clear(self) -> None:
        """Gives everything back now: memory is short, or a setting has changed."""
        kinds, self._kinds = list(self._kinds.values()), {}
        for kind in kinds:
            await self._discard(kind)

    async def stop(self) -> None:
        """Removes every spare and waits for those that are being built."""
        self._stopped = True
        await self.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)
