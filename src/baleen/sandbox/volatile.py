"""Where the sockets of living boxes lie: in memory, where that lasts as long as the boxes.

A box's folder comes and goes with the box. On a disk its inodes cost more than its namespaces do;
ext4 without a journal even looks at every inode deleted in the last minutes before it gives one
out. Root's folder is therefore one in memory, to which ``$BALEEN_HOME/boxes`` is a link. That of an
ordinary user stays on disk: at logout his session manager may remove what he has in memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

PLACES = (Path("/run"), Path("/dev/shm"))
IN_MEMORY = {"tmpfs", "ramfs"}
PREFIX = "baleen-boxes-"
NOTE = "link"
"""A link beside the folder to the one that leads to it: without that, the folder is left over."""

SETTLING_S = 60.0
"""A folder younger than this may be one that an edge is about to link to."""


def begin(link: Path, *, enabled: bool = True) -> None:
    """Makes ``link`` lead to a folder in memory, or be a folder where there is to be none.

    A folder in which boxes live stays where it is.
    """
    if not enabled:
        end(link)
    if link.is_symlink():
        if _is_own(link.readlink()):
            return
        link.unlink()  # it went with the host's memory
    elif link.is_dir():
        try:
            link.rmdir()
        except OSError:
            return  # boxes live in it
    if enabled and (folder := _in_memory(link)) is not None:
        link.symlink_to(folder)
    else:
        link.mkdir(mode=0o700)


def end(link: Path) -> None:
    """Removes the folder in memory once no box is in it."""
    if not link.is_symlink():
        return
    folder = link.readlink()
    with contextlib.suppress(OSError):  # a box lives on in it
        folder.rmdir()
        (folder.parent / NOTE).unlink()
        folder.parent.rmdir()
        link.unlink()


def places() -> list[Path]:
    """Where folders of this user may lie in memory; none for an ordinary user."""
    return [place for place in PLACES if _is_memory(place)] if os.geteuid() == 0 else []


def _in_memory(link: Path) -> Path | None:
    for place in places():
        _sweep(place)
        with contextlib.suppress(OSError):
            around = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            (around / NOTE).symlink_to(link)
            folder = around / link.name
            folder.mkdir(mode=0o700)
            return folder
    return None


def _is_memory(place: Path) -> bool:
    try:
        device = place.stat().st_dev
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == number:
            return source.split()[0] in IN_MEMORY
    return False


def _is_own(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    is_private = not found.st_mode & 0o077
    return stat.S_ISDIR(found.st_mode) and is_private and found.st_uid == os.geteuid()


def _sweep(place: Path) -> None:
    """Removes the folders of homes that are gone."""
    for around in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            link = (around / NOTE).readlink()
            is_linked = link.is_symlink() and link.readlink().parent == around
            if not is_linked and time.time() - around.stat().st_mtime > SETTLING_S:
                shutil.rmtree(around)
