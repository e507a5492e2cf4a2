"""From an image's name to what a box is launched with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from ..backends import is_privileged, probe
from ..errors import UnsupportedError
from ..home import Home
from .base import Config, Erofs, Image, LayerRef, Lower, Overlay, Rootfs
from .checking import check_layer
from .errors import ImageError
from .host import host_overlays, host_rootfs
from .reader import read_tree
from .store import Store
from .unpack import unpack


class MountBy(StrEnum):
    """How layers get into boxes."""

    AUTO = "auto"
    """By file where the kernel can, else by loop device, else as folders."""
    FILE = "file"
    """The kernel mounts the file itself: Linux 6.12 and newer."""
    LOOP = "loop"
    """A loop device, read-only, freed with its last mount."""
    DIRECTORY = "directory"
    """Unpacked once per layer; the only way for an ordinary user."""


def mount_by() -> MountBy:
    """The way layers are mounted here; ``BALEEN_IMAGES_MOUNT`` forces one.

    Raises:
        UnsupportedError: a way was forced that there is not.
    """
    chosen = os.environ.get("BALEEN_IMAGES_MOUNT", MountBy.AUTO)
    if chosen not in list(MountBy):
        raise UnsupportedError(
            f"BALEEN_IMAGES_MOUNT={chosen!r} is unknown", remedy=f"one of {', '.join(MountBy)}"
        )
    if chosen != MountBy.AUTO:
        return MountBy(chosen)
    answers = probe()
    offered = {answers.get("erofs_file"), answers.get("erofs_loop")}
    return MountBy.AUTO if is_privileged() and "ok" in offered else MountBy.DIRECTORY


_HOST = Image(base="host")


def is_named(image: str) -> bool:
    """Whether an image is one of the store, not ``host`` and not a folder."""
    return image != "host" and not image.startswith(("/", ".", "~"))


def resolve(
    image: str, home: Home, workspace: str | None = None, toolkits: Sequence[str] = ()
) -> Rootfs:
    """What a box of an image is launched with; toolkits lie on the workspace, that on the image.

    Raises:
        ImageNotFoundError: one of the names stands for nothing here.
        UnsupportedError: a folder does not exist.
    """
    found = _load(image, home)
    for name in (workspace, *toolkits):
        if name is not None:
            found = stack(found, _load(name, home), name)
    return rootfs_of(found, home)


@contextlib.contextmanager
def taken(
    image: str, home: Home, workspace: str | None = None, toolkits: Sequence[str] = ()
) -> Iterator[Rootfs]:
    """Like :func:`resolve`; while it is held, the layers cannot go."""
    if any(is_named(name) for name in (image, workspace, *toolkits) if name is not None):
        with Store(home.images).shared():
            yield resolve(image, home, workspace, toolkits)
    else:
        yield resolve(image, home, workspace, toolkits)


def stack(lower: Image, upper: Image, name: str) -> Image:
    """An image on top of another one.

    Raises:
        ImageError: the upper one has a base of its own and cannot lie on anything.
    """
    if upper.base is not None:
        raise ImageError(f"{name!r} stands on {upper.base!r} and cannot be stacked on an image")
    return replace(
        lower, layers=lower.layers + upper.layers, config=lower.config.under(upper.config)
    )


def rootfs_of(image: Image, home: Home) -> Rootfs:
    """What a box of an image is launched with."""
    if image == _HOST:
        return host_rootfs(home)
    overlays = {o.at: o.lowers for o in base_overlays(image.base, home)}
    digests = tuple(layer.digest for layer in image.layers)
    if image.layers:
        store = Store(home.images)
        how = mount_by()
        for layer in _once(image.layers):
            lower = lower_of(store, layer, how)
            overlays[layer.at] = (lower, *overlays.get(layer.at, ()))
    if not overlays:
        overlays["/"] = (_empty(home),)
    made = tuple(Overlay(at, lowers) for at, lowers in overlays.items())
    return Rootfs(made, image.config, digests, image)


def _once(layers: Sequence[LayerRef]) -> list[LayerRef]:
    """The layers without those that lie again further up: the kernel takes none twice.

    They come twice where a workspace was built on the very base that it is laid on. A layer decides
    for every path that it names, so nothing of the lower copy could be seen.
    """
    return list(dict.fromkeys(reversed(layers)))[::-1]


def lower_of(store: Store, layer: LayerRef, how: MountBy) -> Lower:
    """A layer as this host can mount it."""
    path = store.layer_path(layer.digest)
    if how is not MountBy.DIRECTORY:
        check_layer(path)
        return Erofs(str(path))

    def fill(folder: Path) -> None:
        check_layer(path)
        unpack(read_tree(path), folder, as_root=is_privileged())

    return str(store.add_tree(layer.digest, fill))


def _load(name: str, home: Home) -> Image:
    if name == "host":
        return _HOST
    if not is_named(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UnsupportedError(
                f"image {name!r} is not a directory", remedy='use "host" or a root file system'
            )
        return Image(base=str(folder))
    store = Store(home.images)
    return _cached_image(store.root, store.lookup(name))


@lru_cache(maxsize=256)
def _cached_image(root: Path, digest: str) -> Image:
    return Store(root).image(digest)


def base_overlays(base: str | None, home: Home) -> list[Overlay]:
    if base is None:
        return []
    return host_overlays(home) if base == "host" else [Overlay("/", (base,))]


def _empty(home: Home) -> str:
    """A folder with nothing in it, below an image without layers."""
    folder = home.images / "empty"
    folder.mkdir(mode=0o755, exist_ok=True)
    return str(folder)


__all__ = ["Config", "MountBy", "is_named", "mount_by", "resolve", "rootfs_of", "stack"]
