"""A box's folder, ``boxes/<id>``: its socket, and the link to its log by which an edge finds it.

The link of a cell that nobody owns yet has another name: claiming it is one rename.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from .home import Home
from .log import Log
from .trajectory import MAGIC

SOCKET = "agent.sock"
LINK = "log"
UNCLAIMED_LINK = "log.unclaimed"


def begin_log(home: Home, cell_id: str) -> Log:
    """Makes the log of a cell, and the link that counts once its owner has given it its name."""
    log = Log.create(home.logs / f"{cell_id}.log")
    os.symlink(log.path, home.boxes / cell_id / UNCLAIMED_LINK)  # noqa: PTH211 - for every box
    return log


def claim(home: Home, folder: Path, log: Log, trajectory: str | None) -> Log:
    """Makes a cell a box: a later edge finds it. Returns its log, a new one at `trajectory`.

    Raises:
        OSError: the link could not be made: there has never been such a box.
        TrajectoryError: a log cannot begin there.
    """
    if trajectory is None:
        os.rename(f"{folder}/{UNCLAIMED_LINK}", f"{folder}/{LINK}")  # noqa: PTH104
        return log
    own = Log.create(Path(trajectory))
    log.discard()
    try:
        link_log(home, folder.name, own.path)
        (folder / LINK).symlink_to(own.path)
    except OSError:
        own.discard()
        raise
    return own


def link_log(home: Home, box_id: str, path: Path) -> None:
    """Sees to it that the log of a box is found among the home's when its folder has gone."""
    named = home.logs / f"{box_id}.log"
    if named != path and not named.is_symlink():
        named.symlink_to(path)


def discard_log(home: Home, box_id: str, log: Log) -> None:
    """Removes a log in which nothing is of use to anybody, and the home's link to it."""
    log.discard()
    (home.logs / f"{box_id}.log").unlink(missing_ok=True)


def sweep_log(home: Home, cell_id: str) -> None:
    """Removes the log of a cell that an earlier edge has built and nobody has claimed."""
    path = home.logs / f"{cell_id}.log"
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size <= len(MAGIC):
            path.unlink()


def remove(folder: str) -> None:
    """Removes a folder, which mostly holds these two: this is done for every box."""
    try:
        os.unlink(f"{folder}/{SOCKET}")  # noqa: PTH108
        os.unlink(f"{folder}/{LINK}")  # noqa: PTH108
        os.rmdir(folder)  # noqa: PTH106
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
