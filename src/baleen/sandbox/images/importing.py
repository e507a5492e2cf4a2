"""``baleen image import``: a folder, a tarball or an OCI layout becomes an image of the store."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from .archives import images_in_tar
from .base import Config, Image, LayerRef
from .errors import ImageError
from .folders import Ids, read_folder
from .limits import Limits
from .oci import Layout, Progress, convert_layer, own_architecture
from .store import Store
from .tree import Node, folder, make_folders, parts_of


def _silent(_: str) -> None:
    pass


def import_image(
    store: Store,
    source: str | os.PathLike[str],
    name: str,
    *,
    at: str = "/",
    ref: str | None = None,
    config: Config | None = None,
    only_root: bool = False,
    architecture: str | None = None,
    limits: Limits | None = None,
    progress: Progress = _silent,
) -> str:
    """Imports and names an image; returns its digest.

    Args:
        store: where it goes.
        source: a folder (a root file system, or anything with ``at``), a tarball, an OCI layout,
            or what ``docker save`` has written.
        name: its name here.
        at: where in a box the content of a folder or tarball lies.
        ref: which image of a layout or archive that holds several.
        config: what else its config says.
        only_root: everything belongs to root, whoever owns it on the host.
        architecture: which image of a layout for several; this machine's.
        limits: caps on what an archive unpacks to.
        progress: is told what happens.

    Raises:
        ImageError: nothing of these kinds, damaged, or of another digest than it says.
        UnsafeImageError: an archive that climbs out of its root, or a bomb.
    """
    path = Path(source).expanduser()
    limits = limits or Limits()
    chosen = architecture or own_architecture()
    with store.writing(), ExitStack() as stack:
        images = images_in_tar(path, stack) if path.is_file() else None
        if path.is_dir() and Layout.is_at(path):
            images = Layout(path)
        if images is not None:
            image = images.load(store, ref, chosen, progress, limits)
        elif path.is_dir():
            progress(f"folder {path}")
            ids = Ids(only_root=only_root)
            digest = store.add_layer(lambda w: moved(read_folder(str(path), w, ids=ids), at))
            image = Image((LayerRef(digest),), architecture=chosen)
        elif path.is_file():
            progress(f"archive {path}, {path.stat().st_size >> 10} KiB")
            image = _of_tar(store, path, at, limits, chosen)
        else:
            raise ImageError(f"{path} does not exist")
        if config is not None:
            image = replace(image, config=image.config.under(config))
        return store.add_image(image, name)


def _of_tar(store: Store, path: Path, at: str, limits: Limits, architecture: str) -> Image:
    with path.open("rb") as file:
        if at in ("", "/"):
            digest = convert_layer(store, file, path.stat().st_size, None, limits)
        else:
            digest = store.add_layer(lambda w: moved(_tar_tree(file, w, path, limits), at))
    return Image((LayerRef(digest),), architecture=architecture)


def _tar_tree(file: Any, writer: Any, path: Path, limits: Limits) -> Node:
    from .compression import opened
    from .limits import Meter
    from .tarball import read_tar

    with opened(file) as stream:
        return read_tar(stream, writer, Meter(limits, path.stat().st_size))


def moved(tree: Node, at: str) -> Node:
    """A tree placed at a path of a new root."""
    parts = parts_of(os.fsencode(at))
    if not parts:
        return tree
    root = folder(mtime_ns=tree.mtime_ns)
    make_folders(root, parts[:-1]).children[parts[-1]] = tree
    return root
