"""Cells: boxes that run and that nobody owns yet; and the launcher that makes and removes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import boxfolder
from .agentlink import AgentLink
from .call import helper_argv
from .cgroups import Groups
from .errors import BoxGoneError, CapacityError, LaunchError
from .home import Home
from .images.base import Rootfs
from .images.resolve import is_named, mount_by, resolve, taken
from .launcher import Launcher
from .log import Log
from .spec import BoxSpec, resource_limits
from .switches import Switches

T = TypeVar("T")

SWEEP_EVERY = 2
OLD_GROUP_S = 3.0
"""A living launcher's group that no box owns is given so long to be filled or removed by itself.
The launcher sets a group's time of change anew when it keeps it for another box."""

LAST_SWEEP_S = 2.0
LAUNCHER_TRIES = 10
"""Something may kill launchers as fast as they start; on a busy host a start takes a while."""

CELL_TRIES = 3

FIRST_ID = 0x7000_0000
"""Host ids of boxes begin above what users, services and other container tools take."""

IDS_PER_BOX = 65_536
MAX_SLOTS = 4_000
RLIMIT_NPROC = 6
OWN_PROCESSES = 8


def _ignore() -> None:
    pass


@dataclass(eq=False)
class Cell:
    """A box without owner: it ends with the edge's connection until it is claimed."""

    id: str
    spec: BoxSpec
    """What it was built for; its owner's may differ in what need not be built."""
    rootfs: Rootfs
    image_data: dict[str, Any]
    """The image as logs name it."""
    folder: Path
    slot: int
    pid: int
    groups: list[str]
    link: AgentLink
    confinement: dict[str, Any]
    """What the launcher could use: ``landlock``, and folders that could not be id-mapped."""
    log: Log
    """Its log, empty so far."""
    on_gone: Callable[[], None] = _ignore


class Cells:
    """Makes and removes cells; keeps the launcher alive."""

    def __init__(
        self,
        home: Home,
        groups: Groups,
        launch: Callable[[], Awaitable[Launcher]],
        *,
        privileged: bool,
        switches: Switches,
    ) -> None:
        self.groups = groups
        self._switches = switches
        self.privileged = privileged
        self._home = home
        self._launch = launch
        self._launcher: Launcher | None = None
        self._launching = asyncio.Lock()
        self._ticks = 0
        self._alive: dict[str, tuple[int, list[str]]] = {}
        """Process 1 and groups of every cell and box, by id."""
        self._free_slots = list(range(MAX_SLOTS - 1, -1, -1))

    @property
    def has_slots(self) -> bool:
        return bool(self._free_slots)

    async def living_launcher(self) -> Launcher:
        """Returns the launcher, a new one if something has killed it; boxes do not die with it."""
        launcher = self._launcher
        if launcher is not None and launcher.is_alive:
            return launcher
        async with self._launching:
            if self._launcher is None or not self._launcher.is_alive:
                if self._launcher is not None:
                    await self._launcher.stop()
                self._launcher = await self._new_launcher()
                for box_id in list(self._alive):  # others come and go meanwhile
                    await self._introduce(box_id, self._launcher)
            return self._launcher

    async def _introduce(self, box_id: str, launcher: Launcher) -> None:
        """Makes a launcher know a box of an earlier one: it cannot end what it does not know."""
        if box_id in self._alive and box_id not in launcher.known:
            with contextlib.suppress(LaunchError):  # it has just ended
                await launcher.adopt(box_id, self._alive[box_id][0])

    async def _new_launcher(self) -> Launcher:
        """Starts a launcher, again if something kills it while it starts."""
        for _ in range(LAUNCHER_TRIES - 1):
            with contextlib.suppress(LaunchError):
                return await self._launch()
        return await self._launch()

    async def _with_launcher(self, work: Callable[[Launcher], Awaitable[T]]) -> T:
        """Asks the launcher, again where it was killed before it could answer."""
        for _ in range(LAUNCHER_TRIES - 1):
            launcher = await self.living_launcher()
            try:
                return await work(launcher)
            except LaunchError:
                if launcher.is_alive:
                    raise
        return await work(await self.living_launcher())

    async def build(self, spec: BoxSpec, *, ahead: bool = False) -> Cell:
        """Builds a cell; one built ahead, for which nobody waits, leaves others the processor.

        Raises:
            LaunchError: it did not start; nothing is left of it.
        """
        if not self._free_slots:
            raise CapacityError(f"all {MAX_SLOTS} id ranges are in use", remedy="close boxes")
        cell_id = f"b{uuid.uuid4().hex[:16]}"
        folder = self._home.boxes / cell_id
        slot = self._free_slots.pop()
        cell: Cell | None = None
        log: Log | None = None

        def gone() -> None:
            if cell is not None:
                cell.on_gone()

        try:
            rootfs = await self._settle(folder, spec)
            log = boxfolder.begin_log(self._home, cell_id)
            launch = self._launch_spec(cell_id, spec, rootfs, slot) | {"ahead": ahead}
            answer, link = await self._start(launch, folder, gone)
        except BaseException as error:
            await self._give_up(cell_id, folder, slot)
            if log is not None:
                log.discard()
            if isinstance(error, OSError | BoxGoneError):
                raise LaunchError(f"box {cell_id} did not start: {error}") from error
            raise
        if spec.python:
            link.start_helper(helper_argv(spec.python))
        pid, groups = answer["pid"], answer["groups"]
        confinement = {name: answer[name] for name in ("landlock", "unmapped")}
        image = rootfs.image_data
        cell = Cell(cell_id, spec, rootfs, image, folder, slot, pid, groups, link, confinement, log)
        return cell

    async def _start(
        self, launch: dict[str, Any], folder: Path, gone: Callable[[], None]
    ) -> tuple[dict[str, Any], AgentLink]:
        """Launches a cell and connects to it. Until then it dies with its launcher: begun again."""
        cell_id, socket = launch["id"], folder / boxfolder.SOCKET

        def create(launcher: Launcher) -> Awaitable[dict[str, Any]]:
            socket.unlink(missing_ok=True)  # of an attempt before
            return launcher.create(launch)

        for tries_left in reversed(range(CELL_TRIES)):
            answer = await self._with_launcher(create)
            self._alive[cell_id] = answer["pid"], answer["groups"]
            try:
                return answer, await AgentLink.connect(socket, gone)
            except (OSError, BoxGoneError):
                if not tries_left:
                    raise
            with contextlib.suppress(LaunchError):
                await self.end(cell_id)
        raise AssertionError("the last attempt has returned or raised")

    async def _settle(self, folder: Path, spec: BoxSpec) -> Rootfs:
        """Looks the layers up and notes them, which from then on keeps them from going."""

        def work() -> Rootfs:
            with taken(spec.image, self._home, spec.workspace, spec.toolkits) as rootfs:
                folder.mkdir(mode=0o700)
                if rootfs.digests:
                    note = {"version": 1, "layers": list(rootfs.digests)}
                    partial = folder / "box.json.partial"
                    partial.write_text(json.dumps(note))
                    partial.rename(folder / "box.json")
                return rootfs

        return await self._look_up(spec, work)

    async def resolve(self, spec: BoxSpec) -> Rootfs:
        """What a box of this spec stands on at this moment."""
        names = spec.image, self._home, spec.workspace, spec.toolkits
        return await self._look_up(spec, lambda: resolve(*names))

    async def _look_up(self, spec: BoxSpec, work: Callable[[], Rootfs]) -> Rootfs:
        if any(is_named(x) for x in (spec.image, spec.workspace, *spec.toolkits) if x):
            # It may have to wait for a lock, or unpack.
            return await asyncio.get_running_loop().run_in_executor(None, work)
        return work()

    async def _give_up(self, cell_id: str, folder: Path, slot: int) -> None:
        if cell_id in self._alive:
            with contextlib.suppress(LaunchError):
                await asyncio.shield(self.end(cell_id))
        shutil.rmtree(folder, ignore_errors=True)
        self._free_slots.append(slot)

    def _launch_spec(
        self, cell_id: str, spec: BoxSpec, rootfs: Rootfs, slot: int
    ) -> dict[str, Any]:
        binds = [{"src": m.source, "at": m.target, "ro": m.mode == "ro"} for m in spec.mounts]
        return {
            "id": cell_id,
            "dir": str(self._home.boxes / cell_id),
            "socket": boxfolder.SOCKET,
            "stage": str(self._home.stage),
            "hostname": cell_id[:60],
            "layers": [overlay.to_wire() for overlay in rootfs.overlays],
            "keeper": rootfs.has_erofs,
            "image_mount": mount_by() if rootfs.has_erofs else None,
            "binds": binds,
            "disk_bytes": spec.disk_mb << 20,
            "shm_bytes": min(64 << 20, spec.memory_mb << 19),
            "limits": [list(pair) for pair in self.groups.limits(spec)],
            "rlimits": [list(pair) for pair in self._rlimits(spec)],
            "id_base": first_id(slot) if self.privileged else None,
            "own_network": True,
            "landlock": self._switches.landlock,
            "idmap": self._switches.idmap,
        }

    def _rlimits(self, spec: BoxSpec) -> list[tuple[int, int]]:
        limits = resource_limits(spec)
        if "pids" in self.groups.missing:
            # Counted per user namespace, so it holds for this box alone; its own processes are few.
            limits.append((RLIMIT_NPROC, spec.pids + OWN_PROCESSES))
        return limits

    async def adopt(self, box_id: str, pid: int, groups: list[str], slot: int) -> None:
        """Takes over what an earlier edge's launcher has made.

        Raises:
            LaunchError: it has just ended.
        """
        await self._with_launcher(lambda launcher: launcher.adopt(box_id, pid))
        self._free_slots.remove(slot)
        self._alive[box_id] = pid, groups

    async def end(self, box_id: str) -> None:
        """Kills a cell or box; returns when its last process and its groups are gone."""
        _, groups = self._alive.get(box_id, (0, []))

        async def destroy(launcher: Launcher) -> None:
            # The launcher may have been exchanged just as the box came to be noted here.
            await self._introduce(box_id, launcher)
            await launcher.destroy(box_id, groups)

        try:
            await self._with_launcher(destroy)
        finally:
            self._alive.pop(box_id, None)  # groups that would not go are left to the sweeps

    async def discard(self, cell: Cell) -> None:
        """Removes a cell that nobody has claimed."""
        cell.on_gone = _ignore
        try:
            await self.end(cell.id)
        finally:
            cell.link.close()
            boxfolder.discard_log(self._home, cell.id, cell.log)
            shutil.rmtree(cell.folder, ignore_errors=True)
            self.free_slot(cell.slot)

    def free_slot(self, slot: int) -> None:
        """Gives an id range back; the last one used is the first to be used again."""
        self._free_slots.append(slot)

    def tick(self) -> None:
        """Looks now and then after what launchers left."""
        self._ticks += 1
        if self._ticks % SWEEP_EVERY == 0:
            self.sweep_groups()

    def sweep_groups(self) -> bool:
        """Removes empty groups of dead launchers, and old ones that a removal left behind.

        The kernel refuses to remove a group for an instant after its last process has ended, so
        whoever removes one may have to leave it to the next sweep. A cradle's group holds its
        process and stays. Returns whether nothing of dead launchers is left.
        """
        kept = {group for _, groups in self._alive.values() for group in groups}
        living = f"z{self._launcher.pid}-" if self._launcher and self._launcher.is_alive else None
        is_clean = True
        for parent in self.groups.parents:
            for group in parent.glob("z*-*"):
                if str(group) in kept:
                    continue
                may_be_its_own = living is not None and group.name.startswith(living)
                if may_be_its_own or self._launching.locked():  # a new one's number is not known
                    with contextlib.suppress(OSError):
                        if time.time() - group.stat().st_mtime > OLD_GROUP_S:
                            group.rmdir()
                    continue
                try:
                    group.rmdir()
                except OSError:
                    is_clean = is_clean and not group.exists()
        return is_clean

    async def stop(self) -> None:
        """Ends the launcher; boxes live on."""
        if self._launcher is not None:
            await self._launcher.stop()
        give_up_at = time.monotonic() + LAST_SWEEP_S
        while not self.sweep_groups() and time.monotonic() < give_up_at:
            await asyncio.sleep(0.02)


def first_id(slot: int) -> int:
    """The host's id of root in the box of a slot."""
    return FIRST_ID + slot * IDS_PER_BOX
