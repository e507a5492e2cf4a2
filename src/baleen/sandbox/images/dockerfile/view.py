"""Looks into the file system that an image's box would show, without a box."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ...home import Home
from ..base import Image
from ..erofs import ImageWriter
from ..folders import Ids, read_folder
from ..reader import content, read_tree
from ..resolve import base_overlays
from ..store import Store
from ..tree import MAX_LINKS, Node, folder, merge, parts_of

MAX_TEXT_BYTES = 4 << 20


class View:
    """The merged tree of an image. Nothing of it is mounted; files of a base are read in place."""

    def __init__(self, store: Store, home: Home, image: Image) -> None:
        bases = {overlay.at: overlay.lowers for overlay in base_overlays(image.base, home)}
        self._bases = {at: str(lowers[0]) for at, lowers in bases.items()}
        self._trees: dict[str, Node] = {}
        for layer in image.layers:
            tree = read_tree(store.layer_path(layer.digest))
            below = self._trees.get(layer.at)
            self._trees[layer.at] = tree if below is None else merge(below, tree, keep_marks=True)

    @property
    def places(self) -> list[str]:
        """Where overlays are mounted, the deepest first."""
        return sorted({*self._bases, *self._trees, "/"}, key=len, reverse=True)

    def place_of(self, path: str) -> tuple[str, str]:
        """The overlay that a path lies in, and the path in it."""
        for at in self.places:
            if at == "/" or path == at or path.startswith(f"{at}/"):
                return at, path[len(at) :].lstrip("/") if at != "/" else path.lstrip("/")
        raise AssertionError("every path lies below /")

    def lstat(self, path: str) -> Node | None:
        """The node at a path without links on the way; of a base's file no data."""
        at, rest = self.place_of(path)
        node, base_shows = self._in_layers(at, rest)
        return node if node is not None or not base_shows else self._in_base(at, rest)

    def _in_layers(self, at: str, rest: str) -> tuple[Node | None, bool]:
        """The node of the layers, and whether the base shows at that path."""
        node = self._trees.get(at)
        if node is None:
            return None, True
        base_shows = not node.is_opaque
        parts = parts_of(os.fsencode(rest))
        for index, name in enumerate(parts):
            below = node.children.get(name)
            if below is None:
                return None, base_shows
            if not below.is_folder:
                is_it = index == len(parts) - 1 and not below.is_whiteout
                return (below if is_it else None), False
            base_shows = base_shows and not below.is_opaque
            node = below
        return node, base_shows

    def _in_base(self, at: str, rest: str) -> Node | None:
        if at not in self._bases:
            return folder() if not rest else None
        try:
            full = os.path.join(self._bases[at], rest)  # noqa: PTH118
            meta = os.lstat(full)
        except OSError:
            return None
        node = Node(meta.st_mode, meta.st_uid, meta.st_gid, meta.st_mtime_ns, size=meta.st_size)
        if node.is_link:
            node.target = os.fsencode(os.readlink(full))  # noqa: PTH115
        return node

    def real(self, path: str) -> str:
        """A path with the links on its way resolved; what does not exist stays as it is."""
        done: list[str] = []
        pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
        links = 0
        while pending:
            name = pending.pop()
            if name == "..":
                done = done[:-1]
                continue
            node = self.lstat("/" + "/".join([*done, name]))
            if node is not None and node.is_link and links < MAX_LINKS:
                links += 1
                target = os.fsdecode(node.target)
                if target.startswith("/"):
                    done = []
                pending += [part for part in target.split("/") if part not in ("", ".")][::-1]
                continue
            done.append(name)
        return "/" + "/".join(done)

    def is_folder(self, path: str) -> bool:
        node = self.lstat(self.real(path))
        return node is not None and node.is_folder

    def names(self, path: str) -> list[str]:
        """The names in a folder."""
        real = self.real(path)
        at, rest = self.place_of(real)
        node, base_shows = self._in_layers(at, rest)
        found = set() if node is None else {os.fsdecode(name) for name in node.children}
        if at in self._bases and base_shows:
            base = Path(self._bases[at], rest)
            found |= {entry.name for entry in base.iterdir()} if base.is_dir() else set()
        return sorted(name for name in found if self.lstat(f"{real.rstrip('/')}/{name}"))

    def text(self, path: str) -> str:
        """A small text file, empty where there is none."""
        real = self.real(path)
        node = self.lstat(real)
        if node is None or not node.is_file or node.size > MAX_TEXT_BYTES:
            return ""
        if node.source:
            return content(node).decode("utf-8", "replace")
        at, rest = self.place_of(real)
        return Path(self._bases[at], rest).read_text(errors="replace")

    def take(self, path: str, writer: ImageWriter) -> Node | None:
        """A copy of what lies at a path, its data in ``writer``."""
        from .copying import copied

        real = self.real(path)
        at, rest = self.place_of(real)
        node, base_shows = self._in_layers(at, rest)
        base = self._base_tree(at, rest, writer) if base_shows else None
        if node is None:
            return base
        taken = copied(node, writer)
        return merge(base or folder(), taken) if taken.is_folder else taken

    def _base_tree(self, at: str, rest: str, writer: ImageWriter) -> Node | None:
        if at not in self._bases:
            return None
        full = os.path.join(self._bases[at], rest)  # noqa: PTH118
        try:
            mode = os.lstat(full).st_mode
        except OSError:
            return None
        if stat.S_ISDIR(mode):
            return read_folder(full, writer, ids=Ids())
        parent = Path(full).parent
        name = Path(full).name
        only: Sequence[str] = (name,)
        tree = read_folder(str(parent), writer, ids=Ids(), skip=lambda below, _: below not in only)
        return tree.children.get(os.fsencode(name))
