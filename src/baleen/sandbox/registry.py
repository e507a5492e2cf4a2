"""All boxes of one edge: creating, removing, finding again after a restart, ageing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from baleen.errors import SandboxError

from . import boxfolder
from .box import Box, gone
from .cells import Cell, Cells, first_id
from .cgroups import Groups, out_of_memory_kills
from .errors import (
    BoxGoneError,
    CapacityError,
    Cause,
    LaunchError,
    TrajectoryError,
)
from .freememory import FreeMemory
from .freezer import Freezer
from .home import Home
from .images.commit import UPPERS_FD, commit
from .images.folders import Ids
from .images.store import Store
from .journal import Journal
from .launcher import Launcher
from .provenance import provenance
from .recovery import Recovery
from .spares import Spares
from .spec import BoxSpec, check_id
from .switches import Switches
from .trajectory import Kind

ORPHAN_EXTRA_S = 600
"""A box that no edge comes back for ends this long after its idle time."""

KILL_DELAY_S = 0.001
"""The end of a box's processes is work for the kernel; whoever closed the box goes on first."""

RECOVERY_LANES = 32


class Registry:
    """Boxes by id. Every method is called from the edge's one event loop."""

    def __init__(
        self,
        home: Home,
        groups: Groups,
        launch: Callable[[], Awaitable[Launcher]],
        *,
        privileged: bool,
        max_boxes: int,
        pool_size: int,
        switches: Switches,
        remembered: int,
    ) -> None:
        self.home = home
        self._boxes = str(home.boxes)
        self.groups = groups
        self.max_boxes = max_boxes
        self.privileged = privileged
        self._provenance = provenance(groups.description)
        self._executor = ThreadPoolExecutor(8, thread_name_prefix="log")
        self._journal = Journal(home.journal, self._executor)
        self._cells = Cells(home, groups, launch, privileged=privileged, switches=switches)
        self._spares = Spares(self._cells, pool_size)
        self._recovery = Recovery(home, self._cells, self._journal, self._executor, self._on_gone)
        self._alive: dict[str, Box] = {}
        self._ended: dict[str, Box] = {}
        self._remembered = remembered
        self._by_request: dict[str, Box] = {}
        self._creating: dict[str, asyncio.Task[Box]] = {}
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._is_stopping = False
        self._freezer = Freezer(groups, home.group_name, enabled=switches.freezer)
        self._free_memory = FreeMemory()

    @property
    def boxes(self) -> list[Box]:
        """The boxes that are alive."""
        return list(self._alive.values())

    @property
    def pauses_by(self) -> str:
        """What holds the processes of a paused box still."""
        return "freezer" if self._freezer.is_available else "signals"

    @property
    def is_idle(self) -> bool:
        return not self._alive and not self._creating and not self._removing

    def find(self, box_id: str) -> Box:
        """Returns a live box, or one that ended, with what its log says.

        Raises:
            BoxGoneError: there is no log of such a box.
        """
        box = self._alive.get(box_id) or self._ended.get(box_id)
        if box is None:
            box = self._read_back(box_id)
            self._remember(box)
        return box

    def _read_back(self, box_id: str) -> Box:
        """An ended box from its log; one that nobody has closed went with its host."""
        path = self.home.log_of(check_id(box_id))
        if path is not None:
            with contextlib.suppress(SandboxError):
                box, _ = self._recovery.read(box_id, path)
                self._bury(box)
                return box
        raise BoxGoneError(
            f"no box {box_id} under {self.home.root}",
            remedy="it belongs to another BALEEN_HOME, or its log was removed",
        )

    async def create(self, request: str, spec: BoxSpec) -> Box:
        """Creates a box; the same request again gives the same box, should its reply be lost."""
        box = self._by_request.get(request)
        if box is not None:
            return box
        task = self._creating.get(request)
        if task is None:
            check_id(request)
            await self._admit(spec)
            rootfs = await self._cells.resolve(spec)
            cell = self._spares.take(spec, rootfs)
            if cell is not None and spec.network == "none":
                return self._settle_in(cell, request, spec)
            task = self._creating[request] = asyncio.create_task(self._create(request, spec, cell))
            task.add_done_callback(lambda _: self._creating.pop(request, None))
        return await asyncio.shield(task)

    async def _create(self, request: str, spec: BoxSpec, cell: Cell | None) -> Box:
        box = self._settle_in(cell or await self._cells.build(spec), request, spec)
        if spec.network != "none":
            await box.set_network(box.network)
        return box

    async def _admit(self, spec: BoxSpec) -> None:
        """Refuses what the host could not bear; waits for boxes that are already going.

        Raises:
            CapacityError: names the limit.
        """
        while self._count >= self.max_boxes or not self._cells.has_slots:
            if self._removing:
                await asyncio.wait(self._removing.values(), return_when="FIRST_COMPLETED")
                continue
            raise CapacityError(
                f"{self._count} boxes are alive, the limit is {self.max_boxes}",
                remedy="close some, or raise BALEEN_SANDBOX_MAX_BOXES and restart the edge",
            )
        self._free_memory.check(spec.memory_mb)

    @property
    def _count(self) -> int:
        return len(self._alive) + len(self._creating) + len(self._removing)

    def _settle_in(self, cell: Cell, request: str, spec: BoxSpec) -> Box:
        """Makes a cell a box: with a log, a request's name, and the right to outlive this edge."""
        try:
            log = cell.log = boxfolder.claim(self.home, cell.folder, cell.log, spec.trajectory)
            places = [overlay.at for overlay in cell.rootfs.overlays]
            first = {
                "box": cell.id,
                "request": request,
                "slot": cell.slot,
                "spec": spec.to_wire(),
                "image": cell.image_data,
                "places": places,
                "provenance": self._provenance,
                "confinement": cell.confinement,
            }
            log.append(Kind.OPEN, first, sync=False)  # on disk with the first command's intent
        except (SandboxError, OSError) as error:
            self._keep(cell.id, self._cells.discard(cell))
            if isinstance(error, OSError):
                raise TrajectoryError(f"cannot begin {cell.log.path}: {error}") from error
            raise
        box = Box(cell.id, spec, log, self._journal, self._executor)
        box.request, box.slot, box.pid, box.groups = request, cell.slot, cell.pid, cell.groups
        box.link, box.image = cell.link, cell.rootfs.image
        box.places = places
        box.confinement = cell.confinement
        box.network = spec.network if isinstance(spec.network, str) else list(spec.network)
        cell.on_gone = lambda: self._on_gone(box)
        cell.link.claim(int(spec.ttl_idle_s) + ORPHAN_EXTRA_S)
        self._alive[box.id] = self._by_request[request] = box
        if not spec.one_off:
            self._spares.replace(spec, cell.rootfs)
        return box

    def _keep(self, box_id: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Keeps a removal in sight until it is done."""
        task = self._removing[box_id] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._removing.pop(box_id, None))
        return task

    def _on_gone(self, box: Box) -> None:
        """Process 1 ended without being asked to, or this edge has let go of it."""
        if box.ended is None and not self._is_stopping:
            killed = out_of_memory_kills(box.groups)
            self.destroy(box, Cause.OUT_OF_MEMORY if killed else Cause.NODE_LOST)

    def destroy(self, box: Box, cause: Cause) -> asyncio.Future[None] | None:
        """Ends a box: from now on it takes nothing, and its processes are being killed.

        Returns what to wait for until nothing of it is left on the host, None if that is so.
        """
        if box.ended is None:
            box.ended = cause
            self._alive.pop(box.id, None)
            self._ended[box.id] = box
            box.stop_forwards()
            if box.link is not None:
                box.link.forget_nothing_more()
            self._close_log(box)
            self._keep(box.id, self._remove(box))
        removal = self._removing.get(box.id)
        return asyncio.shield(removal) if removal is not None else None

    def _close_log(self, box: Box) -> None:
        assert box.ended is not None
        with contextlib.suppress(SandboxError):
            box.log.append(Kind.CLOSE, {"cause": box.ended.value}, sync=False)
        # Nobody waits for it: the next command's sync takes it along.
        self._journal.commit(box.log, lambda _: box.log.close(), patient=True)

    async def _remove(self, box: Box) -> None:
        try:
            with contextlib.suppress(LaunchError):  # no launcher lived long enough to kill it
                if box.may_be_frozen and self._freezer.is_frozen(box.groups):
                    ending = asyncio.create_task(self._cells.end(box.id))
                    await asyncio.sleep(0)  # the kill goes first: a frozen process dies as it thaws
                    self._freezer.thaw(box.groups)
                    await ending
                else:
                    await asyncio.sleep(KILL_DELAY_S)
                    await self._cells.end(box.id)
        finally:
            if box.link is not None:
                box.link.end()
            boxfolder.remove(f"{self._boxes}/{box.id}")
            if box.slot is not None:
                self._cells.free_slot(box.slot)
            self._remember(box)

    def _remember(self, box: Box) -> None:
        """Keeps at hand what a late client may ask about the last boxes that ended, and no more."""
        self._ended.pop(box.id, None)
        self._ended[box.id] = box
        while len(self._ended) - len(self._removing) > self._remembered:
            oldest = next(box_id for box_id in self._ended if box_id not in self._removing)
            self._by_request.pop(self._ended.pop(oldest).request, None)

    def _living(self, box_id: str) -> Box:
        box = self.find(box_id)
        if box.ended is not None or box.slot is None:
            raise gone(box.id, box.ended or Cause.NODE_LOST)
        return box

    async def snapshot(self, box_id: str, name: str | None) -> str:
        """Makes an image of what a box stands on and what it has written; returns the digest.

        Raises:
            BoxGoneError: it has ended.
            ImageError: something that it has written cannot be read.
        """
        box = self._living(box_id)
        assert box.slot is not None
        uppers = [(at, f"/proc/{box.pid}/fd/{UPPERS_FD}/up{i}") for i, at in enumerate(box.places)]
        ids = Ids(first_id(box.slot)) if self.privileged else Ids(only_root=True)

        def work() -> str:
            return commit(Store(self.home.images), box.image, uppers, ids, name)

        assert box.link is not None, "a living box has one"
        async with box.link.standing_still(opens=not self.privileged):
            digest = await asyncio.get_running_loop().run_in_executor(self._executor, work)
        await box.append(Kind.SNAPSHOT, {"image": digest, "name": name})
        return digest

    async def fork(self, box_id: str, requests: list[str]) -> list[Box]:
        """Makes boxes that begin with this one's files; the same requests give the same boxes.

        Nothing of its processes, keys or identity goes along: each child has an id, a log and ids
        on the host of its own, and its random numbers come from the kernel.
        """
        box = self._living(box_id)
        if all(request in self._by_request for request in requests):
            return [self._by_request[request] for request in requests]
        digest = await self.snapshot(box_id, None)
        spec = replace(box.spec, image=digest, workspace=None, toolkits=(), trajectory=None)
        made = await asyncio.gather(
            *(self.create(request, spec) for request in requests), return_exceptions=True
        )
        children = [child for child in made if isinstance(child, Box)]
        for failure in made:
            if isinstance(failure, BaseException):
                for child in children:
                    self.destroy(child, Cause.INFRA)
                raise failure
        for child in children:
            box.log.append(Kind.FORK, {"child": child.id, "image": digest}, sync=False)
            child.log.append(Kind.FORK, {"parent": box.id, "seq": box.log.next_seq}, sync=False)
        await asyncio.gather(*(self._journal.committed(c.log) for c in (box, *children)))
        return children

    async def pause(self, box_id: str) -> None:
        """Stops a box's processes where they are, and the clocks of their timeouts."""
        box = self._living(box_id)
        if box.is_paused:
            return
        if self._freezer.is_available and box.groups:
            loop = asyncio.get_running_loop()
            box.may_be_frozen = True
            await loop.run_in_executor(self._executor, self._freezer.freeze, box.groups)
        else:
            assert box.link is not None, "a living box has one"
            await box.link.halt()
        box.hold_still()
        await box.append(Kind.PAUSE, {})

    async def resume(self, box_id: str) -> None:
        """Lets a paused box go on; again: does nothing."""
        box = self._living(box_id)
        if box.is_paused:
            box.go_on()
            self._freezer.thaw(box.groups)
            await box.append(Kind.RESUME, {})

    async def of_job(self, job: str, work: Callable[[str], Awaitable[None]]) -> list[str]:
        """Does something to every box of a job."""
        chosen = [box.id for box in self.boxes if box.spec.job == job]
        await asyncio.gather(*(work(box_id) for box_id in chosen))
        return chosen

    async def expire(self) -> None:
        """Ends the boxes whose idle time is over."""
        self._cells.tick()
        await self._spares.tick()
        now = time.monotonic()
        for box in self.boxes:
            if box.expired(now):
                self.destroy(box, Cause.EXPIRED)

    async def open(self) -> None:
        """Starts the launcher, and with it finds out whether boxes can be made here at all.

        Raises:
            HostError: they cannot.
        """
        await self._cells.living_launcher()

    async def recover(self) -> None:
        """Takes over the boxes that an earlier edge left, and clears away what has died.

        Nobody is served before it is done: a command's key is known here or it has not run.
        """
        folders = iter(sorted(self.home.boxes.iterdir()))

        async def lane() -> None:
            for folder in folders:
                await self._take_over(folder)

        # Each box is asked what it knows, and many can answer while others' logs are read.
        await asyncio.gather(*(lane() for _ in range(RECOVERY_LANES)))
        self._cells.sweep_groups()

    async def _take_over(self, folder: Path) -> None:
        """Takes over a box that lives, finishes the removal of one that was being removed."""
        box = await self._recovery.look(folder)
        if box is None:
            return
        if box.link is None:
            self._bury(box)
            self._by_request[box.request] = box
            self._remember(box)
        elif box.ended is not None:
            self._keep(box.id, self._remove(box))
        else:
            self._alive[box.id] = self._by_request[box.request] = box
            if self._freezer.is_frozen(box.groups) or box.link.is_halted:
                box.hold_still()
            if box.network != "none":
                await box.open_network(box.network)
            box.settle_unfinished()

    def _bury(self, box: Box) -> None:
        """Notes that a box died while no edge lived."""
        if box.ended is None:
            box.ended = Cause.NODE_LOST
            self._close_log(box)

    async def stop(self) -> None:
        """Lets go of everything; boxes live on."""
        self._is_stopping = True
        await self._spares.stop()
        if self._removing:
            await asyncio.wait(self._removing.values())
        for box in self._alive.values():
            box.stop_forwards()
            if box.link is not None:
                box.link.close()
        await self._cells.stop()
        self._freezer.release()
        self._journal.close()
        for box in self._alive.values():
            box.log.close()
        self._executor.shutdown(wait=False)
