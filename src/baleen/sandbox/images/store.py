"""The content-addressed store of images under ``$BALEEN_HOME/images``.

::

    version                 format of the store
    lock                    shared while a box takes its layers, exclusive while garbage goes
    layers/<sha256>.erofs   a layer, named by the digest of its bytes; immutable, read-only
    trees/<sha256>/         the same layer as a folder, where the kernel mounts no EROFS
    manifests/<sha256>      an image, see ``base.py``
    names/<quoted name:tag> digest of the image that the name stands for
    converted/<diff id>     digest of the layer that was made of a foreign one
    cache/<key>             what a build step gave, see ``dockerfile/cache.py``
    leases/<id>             locked by a writer while it lives; see :meth:`Store.writing`
    partial/                what is being written; garbage when its writer is dead

Everything appears by rename after a sync, so a crash leaves partial files and nothing half.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from .base import Image, short
from .checking import written
from .erofs import ImageWriter
from .errors import ImageError, ImageNotFoundError
from .tree import Node

VERSION = "1"
FOLDERS = (
    "layers",
    "trees",
    "manifests",
    "names",
    "converted",
    "cache",
    "leases",
    "partial",
)
LEAST_PREFIX = 8
"""Digits of a digest that name an image."""


class Store:
    """The images of one home; any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not (root / "version").exists():
            self._create()
        version = (root / "version").read_text().strip()
        if version != VERSION:
            raise ImageError(
                f"{root} is a store of version {version}, this is {VERSION}",
                remedy="choose another BALEEN_HOME",
            )

    def _create(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in FOLDERS:
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        self.write("version", VERSION.encode())

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file durably: readers see the old content or the new."""
        partial = self.new_partial()
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        target = self.root / name
        partial.rename(target)
        _sync_folder(target.parent)

    def new_partial(self) -> Path:
        """A fresh name for something that is being written."""
        return self.root / "partial" / uuid.uuid4().hex

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """While it is held, no garbage goes: for whoever looks layers up and notes their use."""
        with self._lock(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """For the garbage collector, while it decides and removes."""
        with self._lock(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Protects what this process adds or finds from now on until it has named it.

        The lease is a file that is locked as long as its writer lives. Garbage collection leaves
        alone whatever was added or used after the oldest living lease began.
        """
        path = self.root / "leases" / uuid.uuid4().hex
        with self.shared():
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    def layer_path(self, digest: str) -> Path:
        return self.root / "layers" / f"{digest}.erofs"

    def tree_path(self, digest: str) -> Path:
        return self.root / "trees" / digest

    def has_layer(self, digest: str) -> bool:
        """Whether a layer is here; if so, a lease that is held now protects it."""
        return _touch(self.layer_path(digest))

    def add_layer(self, fill: Callable[[ImageWriter], Node]) -> str:
        """Writes a layer, returns its digest; ``fill`` hands in the data and returns the tree."""
        partial = self.new_partial()
        try:
            with partial.open("w+b") as file:
                writer = ImageWriter(file)
                digest = writer.finish(fill(writer))
            partial.chmod(0o400)
            if not self.has_layer(digest):
                partial.rename(self.layer_path(digest))
                written(self.layer_path(digest))
                _sync_folder(self.root / "layers")
        finally:
            partial.unlink(missing_ok=True)
        return digest

    def add_tree(self, digest: str, fill: Callable[[Path], None]) -> Path:
        """Unpacks a layer into a folder unless that has been done, and returns the folder."""
        target = self.tree_path(digest)
        if target.exists():
            return target
        partial = self.new_partial()
        partial.mkdir(mode=0o755)
        try:
            fill(partial)
            partial.rename(target)
        except OSError:
            if not target.exists():  # another process was not faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    def add_image(self, image: Image, *names: str) -> str:
        """Keeps an image, under names if some are given, and returns its digest."""
        digest = image.digest
        for layer in image.layers:
            if not self.has_layer(layer.digest):
                raise ImageError(f"layer {short(layer.digest)} of the image is not in the store")
        if not _touch(self.root / "manifests" / digest):
            self.write(f"manifests/{digest}", image.manifest())
        for name in names:
            self.write(f"names/{quote(full_name(name), safe='')}", digest.encode())
        return digest

    def image(self, digest: str) -> Image:
        """The image of a digest.

        Raises:
            ImageNotFoundError: it is not here.
            ImageError: its manifest is of another version or damaged.
        """
        try:
            text = (self.root / "manifests" / digest).read_bytes()
        except FileNotFoundError:
            raise ImageNotFoundError(f"no image {short(digest)} in {self.root}") from None
        try:
            image = Image.from_manifest(text)
        except (ValueError, KeyError, TypeError) as error:
            raise ImageError(
                f"manifest {short(digest)} cannot be read: {error}", remedy="remove and pull again"
            ) from None
        if image.digest != digest:
            raise ImageError(f"manifest {short(digest)} is damaged", remedy="remove and pull again")
        return image

    def lookup(self, name: str) -> str:
        """The digest of the image that a name, or the beginning of a digest, stands for.

        Raises:
            ImageNotFoundError: nothing is known under it; says what is near.
        """
        try:
            return (self.root / "names" / quote(full_name(name), safe="")).read_text()
        except OSError:
            pass
        prefix = name.removeprefix("sha256:")
        if len(prefix) >= LEAST_PREFIX and set(prefix) <= set("0123456789abcdef"):
            found = [p.name for p in (self.root / "manifests").glob(f"{prefix}*")]
            if len(found) == 1:
                return found[0]
        known = ", ".join(sorted(self.names())[:8]) or "none"
        raise ImageNotFoundError(
            f"no image {name!r} here (there are: {known})",
            remedy=f"`baleen image pull {name}`, or build or import it",
        )

    def names(self) -> dict[str, str]:
        """Every name and the digest it stands for."""
        found = {}
        for path in (self.root / "names").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[unquote(path.name)] = path.read_text()
        return found

    def untag(self, name: str) -> None:
        """Forgets a name; the layers go with the next :func:`~.gc.collect`.

        Raises:
            ImageNotFoundError: there is no such name.
        """
        try:
            (self.root / "names" / quote(full_name(name), safe="")).unlink()
        except FileNotFoundError:
            raise ImageNotFoundError(
                f"no image {name!r} here", remedy="see `baleen image ls`"
            ) from None

    def converted(self, diff_id: str) -> str | None:
        """The layer that was made of a foreign layer, if it is still here."""
        try:
            digest = (self.root / "converted" / diff_id).read_text()
        except OSError:
            return None
        return digest if self.has_layer(digest) else None

    def note_converted(self, diff_id: str, digest: str) -> None:
        self.write(f"converted/{diff_id}", digest.encode())


def full_name(name: str) -> str:
    """A name with its tag; Docker's own registry and library go unsaid.

    Raises:
        ImageError: it cannot be a name.
    """
    plain = name.removeprefix("docker.io/").removeprefix("library/")
    if not plain or plain != plain.strip() or any(c.isspace() or c == "\0" for c in plain):
        raise ImageError(f"{name!r} is not an image's name", remedy='e.g. "tools:1"')
    last = plain.rpartition("/")[2]
    return plain if ":" in last or "@" in last else f"{plain}:latest"


def _touch(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def age_s(path: Path) -> float:
    """Seconds since a file of the store was added or used."""
    return time.time() - path.stat().st_mtime
