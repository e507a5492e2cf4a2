"""A box's own writing becomes a layer: the upper layers of its overlays, read from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from .base import Image, LayerRef
from .folders import Ids, read_folder
from .store import Store
from .tree import OPAQUE, Node

UPPERS_FD = 100
"""Process 1 of a box holds the folder of its upper layers under this number (``rootfs.rs``)."""

STOP_ATTEMPTS = 200
_MADE_BY_LAUNCHER = (b"proc", b"sys", b"dev", b"run", b"tmp")


def commit(
    store: Store,
    image: Image,
    uppers: Sequence[tuple[str, str]],
    id_base: int,
    name: str | None = None,
) -> str:
    """Adds what a box has written to the image that it stands on; returns the digest.

    Args:
        store: where it goes.
        image: what the box stands on.
        uppers: (where an overlay is mounted, its upper layer on the host).
        id_base: the host id of the box's root.
        name: the new image's name, if it gets one.
    """
    layers = list(image.layers)
    with store.writing():
        for layer in layers:
            store.has_layer(layer.digest)
        for at, upper in uppers:
            if _is_untouched(upper):
                continue
            root: Node | None = None

            def fill(writer: object, upper: str = upper) -> Node:
                nonlocal root
                root = read_folder(upper, writer, ids=Ids(id_base), is_upper=True)  # type: ignore[arg-type]
                _without_launchers_places(root)
                return root

            digest = store.add_layer(fill)
            assert root is not None, "the layer was written"
            if root.children:
                layers.append(LayerRef(digest, at))
        return store.add_image(replace(image, layers=tuple(layers)), *([name] if name else []))


def _is_untouched(upper: str) -> bool:
    """Whether an upper layer holds nothing but the empty folders that every box gets."""
    with os.scandir(upper) as found:
        for entry in found:
            if os.fsencode(entry.name) not in _MADE_BY_LAUNCHER:
                return False
            if not entry.is_dir(follow_symlinks=False) or os.listdir(entry.path):  # noqa: PTH208
                return False
            if OPAQUE in os.listxattr(entry.path, follow_symlinks=False):
                return False
    return True


def _without_launchers_places(root: Node) -> None:
    """Leaves out the empty folders that every box gets."""
    for name in _MADE_BY_LAUNCHER:
        node = root.children.get(name)
        if node is not None and node.is_folder and not node.children and not node.is_opaque:
            del root.children[name]


@contextmanager
def standing_still(groups: Sequence[str]) -> Iterator[None]:
    """Stops the processes of a box's control groups, those that they start meanwhile included."""
    stopped: set[int] = set()
    try:
        for _ in range(STOP_ATTEMPTS if groups else 0):
            moving = [pid for pid in _members(groups[0]) if _state(pid) not in ("T", "t", "Z", "")]
            if not moving:
                break
            for pid in moving:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.add(pid)
            time.sleep(0.0005)
        yield
    finally:
        for pid in stopped & set(_members(groups[0]) if groups else ()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _members(group: str) -> list[int]:
    try:
        return [int(pid) for pid in Path(group, "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
