"""A layer's bytes are those of its name before the kernel parses them, once in a process's life.

The files are ours and only their owner can write them; what this finds is a disk that has lost
bytes and a file that somebody put there. A damaged one is removed, so that the next pull or build
brings it anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .base import short
from .errors import ImageError

_whole: dict[Path, tuple[int, int]] = {}
"""Inode and size of the files that were found whole, or written by this process."""


def check_layer(path: Path) -> None:
    """Checks a layer unless that has been done.

    Raises:
        ImageError: it is gone, or its bytes have another digest than the one that names it.
    """
    try:
        stamp = _stamp(path)
        if _whole.get(path) == stamp:
            return
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        text = f"layer {path} cannot be read: {error.strerror}"
        raise ImageError(text, remedy="pull or build the image again") from None
    if found != path.stem:
        path.unlink(missing_ok=True)
        raise ImageError(
            f"layer {short(path.stem)} is damaged, its bytes are {short(found)}; it was removed",
            remedy="pull or build the image again",
        )
    _whole[path] = stamp


def written(path: Path) -> None:
    """Notes a layer that this process has just written and named by what it wrote."""
    _whole[path] = _stamp(path)


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_ino, about.st_size
