"""A box's own writing becomes a layer: the upper layers of its overlays, read from outside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

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
    ids: Ids,
    name: str | None = None,
) -> str:
    """Adds what a box has written to the image that it stands on; returns the digest.

    Args:
        store: where it goes.
        image: what the box stands on.
        uppers: (where an overlay is mounted, its upper layer on the host).
        ids: how owners on the host become owners in the image.
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
                root = read_folder(upper, writer, ids=ids, is_upper=True)  # type: ignore[arg-type]
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
