"""Where the sandbox keeps its state: ``$BALEEN_HOME``, default ``~/.local/share/baleen``.

::

    edge.sock  edge.pid  edge.lock  edge.log    the daemon of this user
    boxes/<id>/log  agent.sock                  one folder per living box: a link to its log, its
                                                socket; boxes/ may be a link (see volatile.py)
    journal/                                    what the logs may lack after a crash of the host
    logs/<id>.log                               trajectories, or links to those placed elsewhere
    images/host-<digest>/                       skeleton of the ``host`` image
    stage/                                      empty; mount point inside each box's own namespace
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The folder of one user's edge."""

    root: Path

    @classmethod
    def default(cls) -> Home:
        chosen = os.environ.get("BALEEN_HOME")
        return cls(Path(chosen).absolute() if chosen else Path.home() / ".local/share/baleen")

    @property
    def socket(self) -> Path:
        return self.root / "edge.sock"

    @property
    def pid_file(self) -> Path:
        return self.root / "edge.pid"

    @property
    def lock(self) -> Path:
        return self.root / "edge.lock"

    @property
    def start_lock(self) -> Path:
        return self.root / "edge.start"

    @property
    def zygote_lock(self) -> Path:
        return self.root / "zygote.lock"

    @property
    def log(self) -> Path:
        return self.root / "edge.log"

    @property
    def boxes(self) -> Path:
        return self.root / "boxes"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def stage(self) -> Path:
        return self.root / "stage"

    @property
    def group_name(self) -> str:
        """Name of the control group that holds this home's boxes; two homes never share one."""
        return f"baleen-{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]}"

    def prepare(self) -> None:
        """Makes the folders; only their owner may enter the ones that hold sockets and logs."""
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in (self.logs, self.journal, self.images, self.stage):
            folder.mkdir(mode=0o700, exist_ok=True)

    def log_of(self, box_id: str) -> Path | None:
        """The trajectory of a box of this home, living or not; None where there is none."""
        log = self.logs / f"{box_id}.log"
        if log.is_symlink():
            return log.readlink()
        return log if log.is_file() else None
