"""All boxes of one edge: launching, removing, finding again after a restart, ageing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from baleen.errors import SandboxError

from .agentlink import AgentLink
from .box import Box, gone
from .call import helper_argv
from .cgroups import Groups, own_paths
from .errors import (
    BoxGoneError,
    CapacityError,
    Cause,
    LaunchError,
    TrajectoryError,
    UnsupportedError,
)
from .home import Home
from .images.base import Image, Rootfs
from .images.resolve import is_named, mount_by, taken
from .launcher import Launcher
from .spec import BoxSpec, check_id, resource_limits
from .trajectory import Kind, Log, Record, read

T = TypeVar("T")

SWEEPS = 20
"""Ticks after a launcher starts in which dead ones' groups are removed: they empty with delay."""

FIRST_ID = 0x7000_0000
"""Host ids of boxes begin above what users, services and other container tools take."""

IDS_PER_BOX = 65_536
MAX_SLOTS = 4_000
ORPHAN_EXTRA_S = 600
"""A box that no edge comes back for ends this long after its idle time."""

TOMBSTONES_KEPT = 1_000
RLIMIT_NPROC = 6
OWN_PROCESSES = 8


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
    ) -> None:
        self.home = home
        self.groups = groups
        self.max_boxes = max_boxes
        self._launch = launch
        self._launcher: Launcher | None = None
        self._launching = asyncio.Lock()
        self._sweeps_left = SWEEPS
        self._boxes: dict[str, Box] = {}
        self._creating: dict[str, asyncio.Task[Box]] = {}
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._executor = ThreadPoolExecutor(8, thread_name_prefix="log")
        self._free_slots = list(range(MAX_SLOTS - 1, -1, -1))
        self.privileged = privileged

    @property
    def boxes(self) -> list[Box]:
        """The boxes that are alive."""
        return [box for box in self._boxes.values() if box.ended is None]

    @property
    def is_idle(self) -> bool:
        return not self.boxes and not self._creating and not self._removing

    def find(self, box_id: str) -> Box:
        """Returns a live or remembered box.

        Raises:
            BoxGoneError: this edge knows no box of that id.
        """
        box = self._boxes.get(box_id)
        if box is None:
            raise _unknown(self.home, box_id)
        return box

    async def create(self, box_id: str, spec: BoxSpec) -> Box:
        """Creates a box; the same id again gives the same box, should the reply have been lost."""
        check_id(box_id)
        if box_id in self._boxes:
            return self._boxes[box_id]
        task = self._creating.get(box_id)
        if task is None:
            self._admit(spec)
            task = self._creating[box_id] = asyncio.create_task(self._create(box_id, spec))
            task.add_done_callback(lambda _: self._creating.pop(box_id, None))
        return await asyncio.shield(task)

    def _admit(self, spec: BoxSpec) -> None:
        """Refuses what the host could not bear.

        Raises:
            CapacityError: names the limit.
        """
        count = len(self.boxes) + len(self._creating)
        if count >= self.max_boxes or not self._free_slots:
            raise CapacityError(
                f"{count} boxes are alive, the limit is {self.max_boxes}",
                remedy="close some, or raise BALEEN_SANDBOX_MAX_BOXES and restart the edge",
            )
        available_mb = _available_memory_mb()
        if available_mb < max(256, spec.memory_mb / 4):
            raise CapacityError(
                f"{available_mb} MB of memory are left, too few for a box of {spec.memory_mb} MB",
                remedy="close boxes or ask for a smaller memory_mb",
            )

    async def _living_launcher(self) -> Launcher:
        """Returns the launcher, a new one if something has killed it; boxes do not die with it."""
        async with self._launching:
            if self._launcher is None or not self._launcher.is_alive:
                if self._launcher is not None:
                    await self._launcher.stop()
                self._launcher = await self._launch()
                for box in self.boxes:
                    await self._launcher.adopt(box.id, box.pid)
                self._sweeps_left = SWEEPS
            return self._launcher

    async def _with_launcher(self, work: Callable[[Launcher], Awaitable[T]]) -> T:
        """Asks the launcher, again where it was killed before it could answer."""
        launcher = await self._living_launcher()
        try:
            return await work(launcher)
        except LaunchError:
            if launcher.is_alive:
                raise
        return await work(await self._living_launcher())

    async def _create(self, box_id: str, spec: BoxSpec) -> Box:
        folder = self.home.boxes / box_id
        path = Path(spec.trajectory) if spec.trajectory else self.home.logs / f"{box_id}.log"
        slot = self._free_slots.pop()
        log: Log | None = None
        try:
            rootfs = await self._settle(box_id, spec, path, slot)
            log = Log.create(path)
            box = Box(box_id, spec, log, self._executor)
            box.slot, box.image = slot, rootfs.image
            image = json.loads(rootfs.image.manifest())
            log.open_with({"box": box_id, "spec": spec.to_wire(), "image": image})
            launch = self._launch_spec(box, rootfs)
            answer = await self._launch_box(folder / "agent.sock", launch)
            box.pid, box.groups = answer["pid"], answer["groups"]
            box.link = await AgentLink.connect(folder / "agent.sock", lambda: self._on_gone(box))
            if spec.python:
                box.link.start_helper(helper_argv(spec.python))
        except BaseException as error:
            self._abandon(folder, log, slot)
            if isinstance(error, OSError):
                raise LaunchError(f"box {box_id} did not start: {error}") from error
            raise
        self._boxes[box_id] = box
        return box

    async def _settle(self, box_id: str, spec: BoxSpec, path: Path, slot: int) -> Rootfs:
        """Looks the layers up and notes the box, which from then on keeps them from going.

        The note comes before the log and the launch, so that no crash loses sight of the box.
        """

        def work() -> Rootfs:
            with taken(spec.image, self.home, spec.workspace, spec.toolkits) as rootfs:
                (self.home.boxes / box_id).mkdir(mode=0o700)
                self._note(box_id, spec, path, slot, layers=rootfs.digests)
                return rootfs

        if any(is_named(x) for x in (spec.image, spec.workspace, *spec.toolkits) if x):
            # It may have to wait for a lock, or unpack.
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        return work()

    async def _launch_box(self, agent: Path, launch: dict[str, Any]) -> dict[str, Any]:
        """Launches a box; if the launcher is killed over it, the next one begins from nothing."""
        launcher = await self._living_launcher()
        try:
            return await launcher.create(launch)
        except LaunchError:
            if launcher.is_alive:
                raise
        launcher = await self._living_launcher()
        with contextlib.suppress(OSError, SandboxError):  # usually it has died with its launcher
            link = await AgentLink.connect(agent, lambda: None)
            os.kill(link.pid, signal.SIGKILL)
            link.close()
        agent.unlink(missing_ok=True)
        return await launcher.create(launch)

    def _abandon(self, folder: Path, log: Log | None, slot: int) -> None:
        if log is not None:
            log.close()
            log.path.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        self._free_slots.append(slot)

    def _launch_spec(self, box: Box, rootfs: Rootfs) -> dict[str, Any]:
        assert box.slot is not None
        spec = box.spec
        binds = [{"src": m.source, "at": m.target, "ro": m.mode == "ro"} for m in spec.mounts]
        return {
            "id": box.id,
            "dir": str(self.home.boxes / box.id),
            "socket": "agent.sock",
            "stage": str(self.home.stage),
            "hostname": box.id[:60],
            "layers": [overlay.to_wire() for overlay in rootfs.overlays],
            "keeper": rootfs.has_erofs,
            "image_mount": mount_by() if rootfs.has_erofs else None,
            "binds": binds,
            "disk_bytes": spec.disk_mb << 20,
            "shm_bytes": min(64 << 20, spec.memory_mb << 19),
            "limits": [list(pair) for pair in self.groups.limits(spec)],
            "rlimits": [list(pair) for pair in self._rlimits(spec)],
            "id_base": FIRST_ID + box.slot * IDS_PER_BOX if self.privileged else None,
            "own_network": True,
            "orphan_ttl_s": int(spec.ttl_idle_s) + ORPHAN_EXTRA_S,
        }

    def _rlimits(self, spec: BoxSpec) -> list[tuple[int, int]]:
        limits = resource_limits(spec)
        if "pids" in self.groups.missing:
            # Counted per user namespace, so it holds for this box alone; its own processes are few.
            limits.append((RLIMIT_NPROC, spec.pids + OWN_PROCESSES))
        return limits

    def _note(
        self,
        box_id: str,
        spec: BoxSpec,
        log: Path,
        slot: int | None,
        cause: Cause | None = None,
        layers: Sequence[str] = (),
    ) -> None:
        """Notes what a later edge must know to find the box again, or that it has ended."""
        data = {
            "version": 1,
            "id": box_id,
            "spec": spec.to_wire(),
            "log": str(log),
            "slot": slot,
            "created_at": time.time(),
            "cause": cause,
            "layers": list(layers),
        }
        path = f"{self.home.boxes}/{box_id}/box.json"
        with open(f"{path}.partial", "w") as file:  # noqa: PTH123 - on the path of every create
            json.dump(data, file)
        os.replace(f"{path}.partial", path)  # noqa: PTH105

    def _on_gone(self, box: Box) -> None:
        """Process 1 ended without being asked to."""
        if box.ended is None and box.id in self._boxes and box.id not in self._removing:
            killed = self.groups.out_of_memory_kills(box.groups)
            cause = Cause.OUT_OF_MEMORY if killed else Cause.NODE_LOST
            self._removing[box.id] = asyncio.create_task(self._remove(box, cause))

    async def destroy(self, box_id: str, cause: Cause) -> None:
        """Ends a box and returns when nothing of it is left on the host."""
        box = self._boxes.get(box_id)
        if box is None or (box.ended is not None and box_id not in self._removing):
            return
        task = self._removing.get(box_id)
        if task is None:
            task = self._removing[box_id] = asyncio.create_task(self._remove(box, cause))
        await asyncio.shield(task)

    async def _remove(self, box: Box, cause: Cause) -> None:
        box.ended = cause
        box.stop_forwards()
        try:
            await self._with_launcher(lambda launcher: launcher.destroy(box.id, box.groups))
            if box.link is not None:
                box.link.close()
            self._bury(box)
        finally:
            self._removing.pop(box.id, None)
            if box.slot is not None:
                self._free_slots.insert(0, box.slot)
        self._forget_oldest()

    def _bury(self, box: Box) -> None:
        """Closes the log and leaves a tombstone: a late client learns what became of the box."""
        assert box.ended is not None
        with contextlib.suppress(SandboxError):
            box.log.append(Kind.CLOSE, {"cause": box.ended.value}, sync=False)
        box.log.close()
        self._note(box.id, box.spec, box.log.path, box.slot, box.ended)
        (self.home.boxes / box.id / "agent.sock").unlink(missing_ok=True)

    def _forget_oldest(self) -> None:
        ended = [box for box in self._boxes.values() if box.ended is not None]
        for box in ended[: max(0, len(ended) - TOMBSTONES_KEPT)]:
            del self._boxes[box.id]
            shutil.rmtree(self.home.boxes / box.id, ignore_errors=True)

    async def expire(self) -> None:
        """Ends the boxes whose idle time is over."""
        if self._sweeps_left:
            self._sweeps_left -= 1
            self._sweep_groups()
        now = time.monotonic()
        for box in self.boxes:
            if box.expired(now):
                await self.destroy(box.id, Cause.EXPIRED)

    async def recover(self) -> None:
        """Takes over the boxes that an earlier edge left, and clears away what has died."""
        await self._living_launcher()
        for folder in sorted(self.home.boxes.iterdir()):
            try:
                state = json.loads((folder / "box.json").read_text())
            except (OSError, ValueError):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            await self._recover_one(folder, state)
        self._sweep_groups()

    async def _recover_one(self, folder: Path, state: dict[str, Any]) -> None:
        spec = BoxSpec.from_wire({**state["spec"], "mounts": ()})
        path = Path(state["log"])
        try:
            records = list(read(path))
            if records and records[0].payload.get("box") != state["id"]:
                raise TrajectoryError(f"{path} is another box's log")
            box = Box(state["id"], spec, Log.open(path), self._executor)
        except SandboxError:
            shutil.rmtree(folder, ignore_errors=True)  # it never came to be
            return
        box.created_at = state["created_at"]
        box.image = _image_of(records)
        box.recall(records)
        closed = next((r.payload["cause"] for r in records[-1:] if r.kind is Kind.CLOSE), None)
        if closed is not None:
            box.ended = Cause(closed)
            box.log.close()
            self._boxes[box.id] = box
            return
        try:
            box.link = await AgentLink.connect(folder / "agent.sock", lambda: self._on_gone(box))
        except (OSError, BoxGoneError):
            await self._give_up(box, folder, is_new=len(records) <= 1)
            return
        await self._adopt(box, state["slot"])

    async def _adopt(self, box: Box, slot: int) -> None:
        assert box.link is not None
        box.pid = box.link.pid
        box.slot = slot
        self._free_slots.remove(slot)
        await (await self._living_launcher()).adopt(box.id, box.pid)
        box.groups = _groups_of(box.pid, self.groups)
        self._boxes[box.id] = box
        box.settle_unfinished()

    async def _give_up(self, box: Box, folder: Path, *, is_new: bool) -> None:
        """Clears away a box that died while no edge lived; an unused one is forgotten."""
        if is_new:
            box.log.close()
            box.log.path.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            return
        box.ended = Cause.NODE_LOST
        self._bury(box)
        self._boxes[box.id] = box

    def _sweep_groups(self) -> None:
        """Removes the empty groups of launchers that are dead; a living one's wait for boxes."""
        kept = {group for box in self._boxes.values() for group in box.groups}
        for parent in self.groups.parents:
            for group in parent.glob("z*-*"):
                launcher = group.name[1:].partition("-")[0]
                if str(group) not in kept and not Path("/proc", launcher).exists():
                    with contextlib.suppress(OSError):
                        group.rmdir()

    async def stop(self) -> None:
        """Lets go of everything; boxes live on."""
        for box in self._boxes.values():
            box.stop_forwards()
            if box.link is not None:
                box.link.close()
            box.log.close()
        if self._launcher is not None:
            await self._launcher.stop()
        self._executor.shutdown(wait=False)


def _image_of(records: list[Record]) -> Image:
    """The image that the log of a box begins with."""
    data = records[0].payload.get("image") if records else None
    return Image(base="host") if data is None else Image.from_manifest(json.dumps(data).encode())


def _unknown(home: Home, box_id: str) -> SandboxError:
    path = home.boxes / check_id(box_id) / "box.json"
    if path.exists():
        cause = json.loads(path.read_text()).get("cause")
        if cause:
            return gone(box_id, Cause(cause))
    return BoxGoneError(
        f"no box {box_id} under {home.root}",
        remedy="it was closed long ago, or belongs to another BALEEN_HOME",
    )


def _available_memory_mb() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise UnsupportedError("/proc/meminfo has no MemAvailable")


def _groups_of(pid: int, groups: Groups) -> list[str]:
    """Finds a box's groups by its spawner, the child of process 1 that is in them."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        paths = own_paths(Path(f"/proc/{child}/cgroup").read_text()).values()
        names = {Path(path).name for path in paths if Path(path).name.startswith("z")}
        places = [parent / name for parent in groups.parents for name in names]
        found = [str(place) for place in places if place.is_dir()]
        if found:
            return found
    return []
