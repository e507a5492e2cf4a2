"""Reads a folder of the host, or the upper layer of a box, into a tree."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .erofs import ImageWriter
from .errors import ImageError
from .limits import Limits, Meter
from .tarball import device_number
from .tree import OPAQUE, Node, whiteout

_KEPT_XATTRS = ("user.", "security.capability")
USER_OPAQUE = "user.overlay.opaque"


@dataclass(frozen=True)
class Ids:
    """How owners on the host become owners in the image."""

    base: int = 0
    """The host id of the image's root; ids outside 65,536 from it become root's."""
    only_root: bool = False
    """Everything is root's: an ordinary user's box, or an import that wants that."""

    def of(self, host: int) -> int:
        if self.only_root:
            return 0
        return host - self.base if 0 <= host - self.base < 65_536 or not self.base else 0


def read_folder(
    path: str,
    writer: ImageWriter,
    *,
    ids: Ids,
    is_upper: bool = False,
    skip: Callable[[str, bool], bool] | None = None,
    meter: Meter | None = None,
) -> Node:
    """Reads a folder; links are kept as links, sockets left out.

    Args:
        path: the folder.
        writer: takes the data.
        ids: how owners are translated.
        is_upper: it is an overlay's upper layer: whiteouts and opaque marks are kept.
        skip: says of a relative path, and whether it is a folder, that it stays out.
        meter: limits; those of :class:`Limits` by default.
    """
    return _Folder(writer, ids, is_upper, skip, meter or Meter(Limits())).read(path)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Says which place of the image may not be read; root may read all."""
    try:
        yield
    except PermissionError as error:
        raise ImageError(
            f"{path} cannot be read as an ordinary user, its mode forbids it",
            remedy="let its owner read it (chmod u+rX), or run the edge as root",
        ) from error


class _Folder:
    def __init__(
        self,
        writer: ImageWriter,
        ids: Ids,
        is_upper: bool,
        skip: Callable[[str, bool], bool] | None,
        meter: Meter,
    ) -> None:
        self._writer = writer
        self._ids = ids
        self._is_upper = is_upper
        self._skip = skip
        self._meter = meter
        self._linked: dict[tuple[int, int], Node] = {}

    def read(self, path: str) -> Node:
        root = self._node(path, os.stat(path))  # noqa: PTH116 - text paths, many of them
        pending = [(root, path, "")]
        while pending:
            parent, at, relative = pending.pop()
            with _named(f"/{relative}"):
                entries = self._entries(at)
            for entry in entries:
                below = f"{relative}{entry.name}"
                if self._skip is not None and self._skip(
                    below, entry.is_dir(follow_symlinks=False)
                ):
                    continue
                with _named(f"/{below}"):
                    node = self._entry(entry)
                if node is None:
                    continue
                parent.children[os.fsencode(entry.name)] = node
                if node.is_folder:
                    pending.append((node, entry.path, f"{below}/"))
        return root

    def _entries(self, path: str) -> Iterable[os.DirEntry[str]]:
        with os.scandir(path) as found:
            return sorted(found, key=lambda entry: os.fsencode(entry.name))

    def _entry(self, entry: os.DirEntry[str]) -> Node | None:
        meta = entry.stat(follow_symlinks=False)
        if stat.S_ISSOCK(meta.st_mode):
            return None
        if self._is_upper and stat.S_ISCHR(meta.st_mode) and meta.st_rdev == 0:
            return whiteout()
        several = meta.st_nlink > 1 and not stat.S_ISDIR(meta.st_mode)
        known = self._linked.get((meta.st_dev, meta.st_ino)) if several else None
        if known is not None:
            return known
        node = self._node(entry.path, meta)
        if several:
            self._linked[meta.st_dev, meta.st_ino] = node
        return node

    def _node(self, path: str, meta: os.stat_result) -> Node:
        node = Node(
            meta.st_mode,
            self._ids.of(meta.st_uid),
            self._ids.of(meta.st_gid),
            meta.st_mtime_ns,
            self._xattrs(path),
        )
        self._meter.entry(meta.st_size if node.is_file else 0)
        if node.is_link:
            node.target = os.fsencode(os.readlink(path))  # noqa: PTH115
        elif node.is_file:
            self._data(node, path)
        elif not node.is_folder and not stat.S_ISFIFO(node.mode):
            node.rdev = device_number(os.major(meta.st_rdev), os.minor(meta.st_rdev))
        return node

    def _data(self, node: Node, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = os.fstat(fd).st_size
            self._writer.add(node, lambda count: os.read(fd, count), size)
        except ImageError as error:
            raise ImageError(f"{path} changed while it was read: {error.message}") from error
        finally:
            os.close(fd)

    def _xattrs(self, path: str) -> dict[str, bytes]:
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.EPERM):
                return {}
            raise
        found = {}
        for name in names:
            if name in (OPAQUE, USER_OPAQUE):
                if self._is_upper and os.getxattr(path, name, follow_symlinks=False) == b"y":
                    found[OPAQUE] = b"y"
            elif name.startswith(_KEPT_XATTRS) and not name.startswith("user.overlay."):
                found[name] = os.getxattr(path, name, follow_symlinks=False)
        return found
