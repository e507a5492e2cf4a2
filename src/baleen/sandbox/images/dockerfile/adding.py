"""COPY, ADD and WORKDIR: layers made from files, without a box."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...home import Home
from ..base import Image, LayerRef
from ..limits import Limits
from ..store import Store
from ..tarball import is_tar
from ..tree import folder, make_folders, parts_of
from .cache import Cache
from .copying import (
    Context,
    Owner,
    Piece,
    archive_piece,
    owner_of,
    pieces_of_image,
    place,
    text_piece,
)
from .fetch import fetched
from .parser import Instruction, without_marks
from .stages import State
from .variables import Variables
from .view import View

Progress = Callable[[str], None]
ImageOf = Callable[[str], Awaitable[Image]]
"""The image that a name in `--from` stands for."""


class Adder:
    """Adds files to the images of one build."""

    def __init__(
        self,
        home: Home,
        store: Store,
        context: Context,
        variables: Variables,
        cache: Cache,
        limits: Limits,
        progress: Progress,
    ) -> None:
        self._home = home
        self._store = store
        self._context = context
        self._variables = variables
        self._cache = cache
        self._limits = limits
        self._say = progress

    def workdir(self, state: State, step: Instruction) -> None:
        """Sets the folder of later steps, and makes it where it is missing."""
        path = self._variables.expand(step, step.rest, state.variables)
        full = posixpath.normpath(posixpath.join("/", state.image.config.workdir, path))
        state.with_config(workdir="/" + full.lstrip("/"))
        view = View(self._store, self._home, state.image)
        real = view.real(full)
        found = view.lstat(real)
        if found is not None and not found.is_folder:
            raise step.fail(f"{full} is a file in the image")
        if found is None:
            piece = Piece(lambda _: folder(), "", True, "empty folder")
            self._add(state, view, [(real, piece)], Owner())

    async def copy(self, state: State, step: Instruction, image_of: ImageOf) -> None:
        """Copies files of the context, of an image, of an archive or from the net."""
        words = step.json_list()
        if words is None:
            rest = replace(step, rest=without_marks(step.rest)) if step.heredocs else step
            words = self._variables.split(rest, state.variables)
        else:
            words = [self._variables.expand(step, word, state.variables) for word in words]
        if len(words) + len(step.heredocs) < 2:
            raise step.fail("a source and a target are needed")
        flags = self._variables.flags(step, state)
        view = View(self._store, self._home, state.image)
        owner = owner_of(step, flags.get("chown", ""), flags.get("chmod", ""), view)
        pieces = await self._pieces(state, step, words[:-1], flags, image_of)
        targets = self._targets(state, view, words[-1], pieces)
        if len(pieces) > 1 and not words[-1].endswith(("/", "/.")) and words[-1] != ".":
            raise step.fail(
                f"{len(pieces)} sources, but {words[-1]!r} is not written as a folder",
                remedy="end it with /",
            )
        if any(target == "" for target, _ in targets):
            raise step.fail("the target is empty")
        identity = [f"{target} {piece.identity}" for target, piece in targets]
        parts = [step.name, repr(owner), *identity]

        async def work() -> Image:
            self._add(state, view, targets, owner)
            return state.image

        state.image = await self._cache.of(state.image, parts, work, self._say)

    async def _pieces(
        self,
        state: State,
        step: Instruction,
        sources: Sequence[str],
        flags: Mapping[str, str],
        image_of: ImageOf,
    ) -> list[Piece]:
        found = []
        for document in step.heredocs:
            text = document.text
            if document.expand:
                text = self._variables.expand_document(text, state.variables)
            found.append(text_piece(document.name, text))
        if "from" in flags:
            image = await image_of(flags["from"])
            view = View(self._store, self._home, image)
            for source in sources:
                found += pieces_of_image(step, view, image.digest, source)
            return found
        for source in sources:
            if step.name == "ADD" and source.startswith(("http://", "https://")):
                found.append(fetched(step, source, flags.get("checksum"), self._limits))
                continue
            for piece in self._context.pieces(step, source):
                is_archive = step.name == "ADD" and piece.local is not None and is_tar(piece.local)
                found.append(archive_piece(piece, self._limits) if is_archive else piece)
        return found

    def _targets(
        self, state: State, view: View, target: str, pieces: Sequence[Piece]
    ) -> list[tuple[str, Piece]]:
        """Where each piece goes, as an absolute path without links."""
        full = posixpath.join("/", state.image.config.workdir, target)
        clean = view.real(posixpath.normpath("/" + full.lstrip("/")))
        into = target.endswith(("/", "/.")) or target in (".", "..") or len(pieces) > 1
        into = into or view.is_folder(clean)
        found = []
        for piece in pieces:
            inside = into and not piece.is_folder
            found.append((posixpath.join(clean, piece.name) if inside else clean, piece))
        return found

    def _add(
        self, state: State, view: View, targets: Sequence[tuple[str, Piece]], owner: Owner
    ) -> None:
        """Adds the layers that hold the pieces: one per overlay that they lie in."""
        by_place: dict[str, list[tuple[str, Piece]]] = {}
        for target, piece in targets:
            at, rest = view.place_of(target)
            by_place.setdefault(at, []).append((rest, piece))
        for at, group in by_place.items():

            def fill(writer: Any, at: str = at, group: Sequence[Any] = tuple(group)) -> Any:
                root = folder()
                self._like_below(root, view, at, [rest for rest, _ in group])
                for rest, piece in group:
                    node = piece.take(writer)
                    owner.apply(node)
                    _keep_root_of(node, view, posixpath.join(at, rest))
                    place(root, rest, node)
                return root

            digest = self._store.add_layer(fill)
            layers = (*state.image.layers, LayerRef(digest, at))
            state.image = replace(state.image, layers=layers)

    def _like_below(self, root: Any, view: View, at: str, targets: Sequence[str]) -> None:
        """Gives the folders on the way the modes and owners that they have in the image."""
        base = view.lstat(at)
        if base is not None:
            root.mode, root.uid, root.gid = base.mode, base.uid, base.gid
        for target in targets:
            parts = parts_of(target.encode())
            for end in range(1, len(parts)):
                made = make_folders(root, parts[:end])
                known = view.lstat(posixpath.join(at, *(p.decode() for p in parts[:end])))
                like = known if known is not None and known.is_folder else folder()
                made.mode, made.uid, made.gid = like.mode, like.uid, like.gid


def _keep_root_of(node: Any, view: View, target: str) -> None:
    """A folder that is there already keeps its own mode and owner; its new content joins it."""
    known = view.lstat(target)
    if node.is_folder and known is not None and known.is_folder:
        node.mode, node.uid, node.gid = known.mode, known.uid, known.gid
        node.xattrs = {}
