"""Finding boxes again: from their folders where an edge has died, from their logs at any time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from baleen.errors import SandboxError

from . import boxfolder
from .agentlink import AgentLink
from .box import Box
from .cells import Cells
from .cgroups import Groups, own_paths
from .errors import BoxGoneError, Cause, LaunchError, TrajectoryError
from .home import Home
from .images.base import Image
from .journal import Journal
from .log import Log
from .spec import BoxSpec
from .trajectory import Kind, Record


class Recovery:
    """What an edge knows of the boxes that it has not made itself."""

    def __init__(
        self,
        home: Home,
        cells: Cells,
        journal: Journal,
        executor: Executor,
        on_gone: Callable[[Box], None],
    ) -> None:
        self._home = home
        self._cells = cells
        self._journal = journal
        self._executor = executor
        self._on_gone = on_gone

    async def look(self, folder: Path) -> Box | None:
        """Returns the box of a folder, without a link if it has died, ended if it was ending.

        None if nobody has ever used it: then nothing of it is left.
        """
        link = folder / boxfolder.LINK
        if not link.is_symlink():
            self._forget(folder)  # it was never claimed
            return None
        path = link.readlink()
        try:
            box, records = self.read(folder.name, path)
        except SandboxError:
            self._forget(folder)  # it never came to be
            return None
        boxfolder.link_log(self._home, box.id, path)  # boxes of earlier versions had none
        if await self._connect(box, folder, records[0].payload["slot"]):
            return box
        shutil.rmtree(folder, ignore_errors=True)
        if len(records) > 1:
            return box
        boxfolder.discard_log(self._home, box.id, box.log)
        return None

    def _forget(self, folder: Path) -> None:
        boxfolder.sweep_log(self._home, folder.name)
        shutil.rmtree(folder, ignore_errors=True)

    def read(self, box_id: str, path: Path) -> tuple[Box, list[Record]]:
        """The box that a log tells of, and the log's records.

        Raises:
            TrajectoryError: it is damaged, or another box's.
        """
        records: list[Record] = []
        log = Log.open(path, on_record=records.append)
        try:
            if not records or records[0].payload.get("box") != box_id:
                raise TrajectoryError(f"{path} is another box's log")
            first = records[0].payload
            spec = BoxSpec.from_wire({**first["spec"], "mounts": ()})
        except SandboxError:
            log.close()
            raise
        box = Box(box_id, spec, log, self._journal, self._executor)
        box.request, box.created_at = first["request"], records[0].wall_ns / 1e9
        if (image := first.get("image")) is not None:
            box.image = Image.from_manifest(json.dumps(image).encode())
        box.places = first["places"]
        box.confinement = first.get("confinement", {})
        box.network = spec.network if isinstance(spec.network, str) else list(spec.network)
        box.recall(records)
        if records[-1].kind is Kind.CLOSE:
            box.ended = Cause(records[-1].payload["cause"])
            log.close()
        return box, records

    async def _connect(self, box: Box, folder: Path, slot: int) -> bool:
        """Connects to process 1 of a box and makes the launcher know it; False if it has died."""
        try:
            link = await AgentLink.connect(folder / boxfolder.SOCKET, lambda: self._on_gone(box))
        except (OSError, BoxGoneError):
            return False
        try:
            groups = _groups_of(link.pid, self._cells.groups)
            await self._cells.adopt(box.id, link.pid, groups, slot)
        except (OSError, LaunchError):  # it has died since it answered
            link.close()
            return False
        box.link, box.pid, box.groups, box.slot = link, link.pid, groups, slot
        return True


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
