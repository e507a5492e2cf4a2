"""A file tree in memory: what a layer is written from and read into.

Names are bytes. Paths are resolved within the tree only: links lead to nodes of the same tree or to
nothing, so no archive can reach a file of the host.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import UnsafeImageError

OPAQUE = "trusted.overlay.opaque"
"""Attribute of a folder that hides the folder below it in lower layers."""

MAX_LINKS = 40


@dataclass(eq=False, slots=True)
class Node:
    """One inode; a file under several names is one node in several folders."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    children: dict[bytes, Node] = field(default_factory=dict)
    """Of a folder."""
    target: bytes = b""
    """Of a symbolic link."""
    rdev: int = 0
    """Of a device: major << 8 | minor for small numbers, as the kernel encodes it."""
    size: int = 0
    block: int = 0
    """Of a file: the first of its whole blocks in the image, once its data is there."""
    tail: bytes = b""
    """Of a file: what follows its last whole block."""
    source: str = ""
    """Of a file that was read from an image: that image."""
    offset: int = 0
    """Of a file that was read from an image: where its tail lies."""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_whiteout(self) -> bool:
        return stat.S_ISCHR(self.mode) and self.rdev == 0

    @property
    def is_opaque(self) -> bool:
        return self.xattrs.get(OPAQUE) == b"y"


def folder(mode: int = 0o755, uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> Node:
    """An empty folder."""
    return Node(stat.S_IFDIR | mode, uid, gid, mtime_ns)


def whiteout() -> Node:
    """The mark that hides a name of lower layers."""
    return Node(stat.S_IFCHR)


def parts_of(path: bytes) -> list[bytes]:
    """The names of a path from a tree's root.

    Raises:
        UnsafeImageError: it climbs with ``..`` or holds a NUL.
    """
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in path:
        raise UnsafeImageError(f"path {path.decode('utf-8', 'replace')!r} leaves its root")
    for part in parts:
        if len(part) > 255:
            raise UnsafeImageError(f"a name of {len(part)} bytes, 255 are allowed")
    return parts


def find(root: Node, path: bytes, *, follow_last: bool = True) -> Node | None:
    """The node at a path, links resolved within the tree; None where there is none."""
    trail = [root]
    pending = [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
    links = 0
    while pending:
        name = pending.pop()
        if name == b"..":
            trail = trail[:-1] or [root]
            continue
        node = trail[-1].children.get(name)
        if node is None or node.is_whiteout:
            return None
        if node.is_link and (pending or follow_last):
            links += 1
            if links > MAX_LINKS:
                return None
            if node.target.startswith(b"/"):
                trail = [root]
            pending += [part for part in node.target.split(b"/") if part not in (b"", b".")][::-1]
            continue
        trail.append(node)
    return trail[-1]


def make_folders(root: Node, parts: list[bytes], like: Node | None = None) -> Node:
    """The folder at a path, made with its parents where it is missing; links are followed."""
    at = root
    for index, name in enumerate(parts):
        node = at.children.get(name)
        if node is not None and node.is_link:
            node = find(root, b"/".join(parts[: index + 1]))
            if node is None:  # leads nowhere in this tree: the folder replaces the link
                at.children[name] = node = _new_folder(like)
        elif node is None or not node.is_folder:
            hides = node is not None and node.is_whiteout
            at.children[name] = node = _new_folder(like)
            if hides:
                node.xattrs[OPAQUE] = b"y"
        if not node.is_folder:
            at.children[name] = node = _new_folder(like)
        at = node
    return at


def _new_folder(like: Node | None) -> Node:
    return folder(uid=like.uid, gid=like.gid, mtime_ns=like.mtime_ns) if like else folder()


def put(root: Node, path: bytes, node: Node) -> None:
    """Places a node as unpacking it over the tree would: folders join, the rest replaces."""
    parts = parts_of(path)
    if not parts:
        if node.is_folder:
            _take_over(root, node)
        return
    parent = make_folders(root, parts[:-1])
    old = parent.children.get(parts[-1])
    if old is not None and old.is_folder and node.is_folder:
        _take_over(old, node)
        return
    if old is not None and old.is_whiteout and node.is_folder:
        node.xattrs[OPAQUE] = b"y"
    parent.children[parts[-1]] = node


def _take_over(old: Node, new: Node) -> None:
    """A folder that exists gets another's metadata."""
    opaque = old.is_opaque
    old.mode, old.uid, old.gid, old.mtime_ns = new.mode, new.uid, new.gid, new.mtime_ns
    old.xattrs = dict(new.xattrs)
    if opaque:
        old.xattrs[OPAQUE] = b"y"


def hide(root: Node, path: bytes) -> None:
    """Places a whiteout; what this layer itself brings under the name stays visible."""
    parts = parts_of(path)
    parent = make_folders(root, parts[:-1])
    old = parent.children.get(parts[-1])
    if old is None:
        parent.children[parts[-1]] = whiteout()
    elif old.is_folder:
        old.xattrs[OPAQUE] = b"y"


def walk(root: Node, prefix: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Every (path, node), folders before what is in them, names in order; without recursion."""
    pending = [(prefix, root)]
    while pending:
        path, node = pending.pop()
        yield path or b"/", node
        for name in sorted(node.children, reverse=True):
            pending.append((path + b"/" + name, node.children[name]))


def merge(lower: Node, upper: Node, *, keep_marks: bool = False) -> Node:
    """The tree that an overlay of two layers shows; shares nodes with both.

    With ``keep_marks`` it still hides what both hide, for something that lies below.
    """
    kept = dict if keep_marks else _plain
    root = Node(upper.mode, upper.uid, upper.gid, upper.mtime_ns, kept(upper.xattrs))
    if keep_marks and lower.is_opaque:
        root.xattrs[OPAQUE] = b"y"
    pending = [(lower if not upper.is_opaque else None, upper, root)]
    while pending:
        below, above, into = pending.pop()
        if below is not None:
            into.children.update(below.children)
        for name, node in above.children.items():
            if node.is_whiteout and not keep_marks:
                into.children.pop(name, None)
            elif node.is_folder:
                under = below.children.get(name) if below is not None else None
                joins = under is not None and under.is_folder and not node.is_opaque
                made = Node(node.mode, node.uid, node.gid, node.mtime_ns, kept(node.xattrs))
                if keep_marks and under is not None and (under.is_opaque or under.is_whiteout):
                    made.xattrs[OPAQUE] = b"y"
                into.children[name] = made
                pending.append((under if joins else None, node, made))
            else:
                into.children[name] = node
    return root


def _plain(xattrs: dict[str, bytes]) -> dict[str, bytes]:
    return {name: value for name, value in xattrs.items() if name != OPAQUE}
