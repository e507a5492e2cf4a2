"""Writes a tree of an image into a folder: where the kernel mounts no EROFS, and for exports."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .reader import chunks
from .tree import OPAQUE, Node

USER_OPAQUE = "user.overlay.opaque"


def unpack(root: Node, target: Path, *, as_root: bool) -> None:
    """Fills an empty folder with a tree.

    As root, owners, devices and attributes are the tree's. As an ordinary user everything is the
    user's own, devices become empty files, and overlay's marks are those that a user's mount reads.
    """
    base = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _Unpacker(as_root).fill(root, base)
    finally:
        os.close(base)


class _Unpacker:
    def __init__(self, as_root: bool) -> None:
        self._as_root = as_root
        self._paths: dict[int, str] = {}

    def fill(self, root: Node, base: int) -> None:
        prefix = f"/proc/self/fd/{base}"
        pending: list[tuple[Node, str]] = [(root, prefix)]
        finished: list[tuple[Node, str]] = []
        while pending:
            node, path = pending.pop()
            finished.append((node, path))
            for name, child in node.children.items():
                at = f"{path}/{os.fsdecode(name)}"
                self._make(child, at)
                if child.is_folder:
                    pending.append((child, at))
        for node, path in reversed(finished):  # modes and times last: filling changes them
            self._finish(node, path)

    def _make(self, node: Node, at: str) -> None:
        if node.is_folder:
            os.mkdir(at, 0o700)  # noqa: PTH102 - paths are text here, by the hundred thousand
            return
        first = self._paths.setdefault(id(node), at)
        if first != at:
            os.link(first, at, follow_symlinks=False)
            return
        if node.is_link:
            os.symlink(node.target, os.fsencode(at))  # noqa: PTH211
        elif node.is_file:
            self._file(node, at)
        elif node.is_whiteout:
            os.mknod(at, stat.S_IFCHR, 0)
        elif self._as_root or stat.S_ISFIFO(node.mode):
            os.mknod(at, node.mode, _host_device(node.rdev))
        else:
            open(at, "wb").close()  # noqa: PTH123
        self._finish(node, at)

    def _file(self, node: Node, at: str) -> None:
        with open(at, "xb") as file:  # noqa: PTH123
            for chunk in chunks(node):
                file.write(chunk)

    def _finish(self, node: Node, at: str) -> None:
        if self._as_root:
            os.lchown(at, node.uid, node.gid)
        for name, value in node.xattrs.items():
            if self._as_root:
                os.setxattr(at, name, value, follow_symlinks=False)
            elif name == OPAQUE:
                os.setxattr(at, USER_OPAQUE, value, follow_symlinks=False)
        if not node.is_link:
            if node.is_folder or node.is_file or self._as_root:
                os.chmod(at, stat.S_IMODE(node.mode))  # noqa: PTH101
            os.utime(at, ns=(node.mtime_ns, node.mtime_ns))


def _host_device(rdev: int) -> int:
    major = (rdev >> 8) & 0xFFF
    minor = (rdev & 0xFF) | (rdev >> 12 & 0xFFF00)
    return os.makedev(major, minor)
