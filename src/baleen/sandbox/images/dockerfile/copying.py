"""COPY and ADD: which files come from where, where they go, and as whose."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..erofs import ImageWriter
from ..errors import ImageError
from ..folders import Ids, read_folder
from ..limits import Limits, Meter
from ..reader import chunks
from ..tree import Node, make_folders, merge, parts_of, walk
from .ignore import Ignore, has_wildcard, pattern
from .parser import Instruction
from .view import View

Take = Callable[[ImageWriter], Node]


@dataclass(frozen=True)
class Piece:
    """One source on its way: how to read it, its base name, and what tells its content apart."""

    take: Take
    name: str
    is_folder: bool
    identity: str
    local: Path | None = None
    """Of a file of the context: where it is; ADD looks whether it is an archive."""


@dataclass(frozen=True)
class Owner:
    """What ``--chown`` and ``--chmod`` make of everything that is copied."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None

    def apply(self, tree: Node) -> None:
        for _, node in walk(tree):
            node.uid = node.uid if self.uid is None else self.uid
            node.gid = node.gid if self.gid is None else self.gid
            if self.mode is not None and not node.is_link:
                node.mode = stat.S_IFMT(node.mode) | self.mode


def owner_of(step: Instruction, chown: str, chmod: str, view: View) -> Owner:
    """Reads the flags; names are looked up in the image."""
    mode = None
    if chmod:
        if not chmod.isdigit() or set(chmod) & set("89") or len(chmod) > 5:
            raise step.fail(f"--chmod={chmod} is not an octal mode")
        mode = int(chmod, 8) & 0o7777
    if not chown:
        return Owner(0, 0, mode)
    user, _, group = chown.partition(":")
    uid, gid = _user(step, user, view)
    if group:
        gid = _number(step, group, view.text("/etc/group"), "group")
    return Owner(uid, gid, mode)


def _user(step: Instruction, user: str, view: View) -> tuple[int, int]:
    table = view.text("/etc/passwd")
    uid = _number(step, user, table, "user")
    for line in table.splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[2] == str(uid) and not user.isdigit():
            return uid, int(fields[3])
    return uid, uid if user.isdigit() else 0


def _number(step: Instruction, name: str, table: str, kind: str) -> int:
    if name.isdigit():
        return int(name)
    for line in table.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] == name:
            return int(fields[2])
    raise step.fail(f"{kind} {name!r} is not in the image")


class Context:
    """The folder that a build may read."""

    def __init__(self, root: Path, ignore: Ignore) -> None:
        self._root = root.resolve()
        self._ignore = ignore

    def pieces(self, step: Instruction, source: str) -> list[Piece]:
        """What a source of COPY stands for.

        Raises:
            BuildError: nothing, or something outside the context.
        """
        clean = posixpath.normpath("/" + source).lstrip("/")
        found = [clean] if self._exists(clean) else []
        if not found and has_wildcard(clean):
            found = self._matches(clean)
        if not found:
            raise step.fail(
                f"{source!r} is not in the context {self._root}",
                remedy="check the path, and .dockerignore",
            )
        return [self._piece(step, path) for path in found]

    def _exists(self, path: str) -> bool:
        return os.path.lexists(self._root / path) and not (path and self._ignore.hides(path))

    def _matches(self, text: str) -> list[str]:
        wanted = pattern(text)
        found = []
        for at, folders, files in os.walk(self._root):
            relative = Path(at).relative_to(self._root).as_posix()
            for name in sorted([*folders, *files]):
                path = name if relative == "." else f"{relative}/{name}"
                if wanted.fullmatch(path) and not self._ignore.hides(path):
                    found.append(path)
        return sorted(found)

    def _piece(self, step: Instruction, path: str) -> Piece:
        full = self._root / path
        parent = full.parent if path else full
        if not parent.resolve().is_relative_to(self._root):
            raise step.fail(f"{path!r} leads out of the context by a link")
        if full.is_symlink():  # named itself, a link is followed, inside the context only
            full = full.resolve()
            if not full.is_relative_to(self._root):
                raise step.fail(f"{path!r} leads out of the context by a link")
            path = full.relative_to(self._root).as_posix()
        if full.is_dir():
            return self._folder(full, "" if path == "." else path)
        name = posixpath.basename(path)
        return Piece(_file_taker(full), name, False, f"{name} {_file_identity(full)}", full)

    def _folder(self, full: Path, path: str) -> Piece:
        prefix = f"{path}/" if path else ""

        def skip(below: str, is_folder: bool) -> bool:
            hidden = self._ignore.hides(prefix + below)
            return hidden and not (is_folder and self._ignore.has_exceptions)

        def take(writer: ImageWriter) -> Node:
            tree = read_folder(str(full), writer, ids=Ids(only_root=True), skip=skip)
            if self._ignore.has_exceptions:
                _drop_hidden(tree, lambda below: self._ignore.hides(prefix + below))
            return tree

        return Piece(take, full.name, True, _folder_identity(full, skip))


def _drop_hidden(tree: Node, hides: Callable[[str], bool]) -> None:
    """Removes hidden folders that were only entered for an exception and held none."""
    found = [(os.fsdecode(path).lstrip("/"), node) for path, node in walk(tree) if node.is_folder]
    parents = dict(found)
    for path in sorted(parents, key=len, reverse=True):
        if path and not parents[path].children and hides(path):
            above = parents[posixpath.dirname(path)]
            above.children.pop(os.fsencode(posixpath.basename(path)), None)


def _file_taker(path: Path) -> Take:
    def take(writer: ImageWriter) -> Node:
        meta = path.stat()
        node = Node(stat.S_IFREG | stat.S_IMODE(meta.st_mode), mtime_ns=meta.st_mtime_ns)
        with path.open("rb") as file:
            writer.add(node, file.read, os.fstat(file.fileno()).st_size)
        return node

    return take


def _file_identity(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{stat.S_IMODE(path.stat().st_mode):o} {digest}"


def _folder_identity(root: Path, skip: Callable[[str, bool], bool]) -> str:
    digest = hashlib.sha256()
    for at, folders, files in os.walk(root):
        relative = Path(at).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        folders[:] = sorted(x for x in folders if not skip(prefix + x, True))
        for name in sorted([*folders, *(x for x in files if not skip(prefix + x, False))]):
            path = Path(at, name)
            if path.is_symlink():
                about = f"-> {os.fsdecode(path.readlink())}"
            elif path.is_file():
                about = _file_identity(path)
            else:
                about = f"{path.stat().st_mode:o}"
            digest.update(os.fsencode(f"{prefix}{name}\0{about}\n"))
    return digest.hexdigest()


def pieces_of_image(step: Instruction, view: View, digest: str, source: str) -> list[Piece]:
    """What a source of ``COPY --from`` stands for."""
    clean = posixpath.normpath("/" + source)
    paths = [clean]
    if has_wildcard(clean):
        parent = posixpath.dirname(clean)
        wanted = pattern(posixpath.basename(clean))
        paths = [
            posixpath.join(parent, name) for name in view.names(parent) if wanted.fullmatch(name)
        ]
    found = []
    for path in paths:
        node = view.lstat(view.real(path))
        if node is None:
            raise step.fail(f"{source!r} is not in the image that --from names")

        def take(writer: ImageWriter, path: str = path) -> Node:
            taken = view.take(path, writer)
            if taken is None:
                raise ImageError(f"{path} vanished from the image")
            return taken

        name = posixpath.basename(path)
        found.append(Piece(take, name, node.is_folder, f"{digest} {path}"))
    if not found:
        raise step.fail(f"nothing in the image fits {source!r}")
    return found


def text_piece(name: str, text: str) -> Piece:
    """A file given as a here-document."""
    data = text.encode("utf-8", "surrogateescape")

    def take(writer: ImageWriter) -> Node:
        node = Node(stat.S_IFREG | 0o644)
        pending = [data]
        writer.add(node, lambda _: pending.pop(), len(data))
        return node

    return Piece(take, name, False, hashlib.sha256(data).hexdigest())


def archive_piece(piece: Piece, meter_limits: Limits) -> Piece:
    """An archive of the context, unpacked by ADD."""
    path = piece.local
    assert path is not None, "only files of the context are unpacked"

    def take(writer: ImageWriter) -> Node:
        from ..compression import opened
        from ..tarball import read_tar

        with path.open("rb") as file, opened(file) as stream:
            meter = Meter(meter_limits, path.stat().st_size)
            return read_tar(stream, writer, meter, whiteouts=False)

    return Piece(take, piece.name, True, f"unpacked {piece.identity}")


def copied(node: Node, writer: ImageWriter) -> Node:
    """A tree of another image, its data in this one."""
    known: dict[int, Node] = {}

    def one(old: Node) -> Node:
        if id(old) in known:
            return known[id(old)]
        new = Node(old.mode, old.uid, old.gid, old.mtime_ns, dict(old.xattrs))
        new.target, new.rdev = old.target, old.rdev
        if old.is_file:
            data = chunks(old)
            rest = [b""]

            def read(count: int) -> bytes:
                while not rest[0]:
                    rest[0] = next(data, b"")
                    if not rest[0]:
                        return b""
                out, rest[0] = rest[0][:count], rest[0][count:]
                return out

            writer.add(new, read, old.size)
        known[id(old)] = new
        return new

    root = one(node)
    pending = [(node, root)]
    while pending:
        old, new = pending.pop()
        for name, child in old.children.items():
            new.children[name] = one(child)
            if child.is_folder:
                pending.append((child, new.children[name]))
    return root


def place(tree: Node, target: str, node: Node) -> None:
    """Puts what is copied at a path of a layer; folders join what is there."""
    parts = parts_of(os.fsencode(target))
    if not parts:
        joined = merge(tree, node)
        tree.children, tree.mode = joined.children, node.mode
        tree.uid, tree.gid = node.uid, node.gid
        return
    parent = make_folders(tree, parts[:-1])
    old = parent.children.get(parts[-1])
    joins = old is not None and old.is_folder and node.is_folder
    parent.children[parts[-1]] = merge(old, node) if joins and old is not None else node
