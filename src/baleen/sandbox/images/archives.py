"""Images in a tar archive: OCI layouts, and what ``docker save`` writes.

Which kind a tarball is shows in its names; the first one that neither kind has makes it the content
of a layer, so that a large root file system is not read twice to find out.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .base import Image
from .errors import ImageError
from .limits import Limits
from .oci import Layout, Progress, convert_layer, image_of, plain_digest
from .store import Store

_OF_IMAGES = re.compile(
    r"blobs(/sha256(/[0-9a-f]{64})?)?|oci-layout|(index|manifest)\.json|repositories"
    r"|[0-9a-f]{64}(\.json|\.tar|/(layer\.tar|json|VERSION))?"
)


def images_in_tar(path: Path, stack: ExitStack) -> Layout | Saved | None:
    """Unpacks the images of a tar archive to a temporary folder; None if it holds none.

    Raises:
        ImageError: it is of one of these kinds and damaged.
    """
    try:
        with tarfile.open(path, "r:*") as archive:
            names = set()
            for member in archive:
                name = member.name.removeprefix("./")
                if not _OF_IMAGES.fullmatch(name) and member.name != ".":
                    return None
                if member.size > path.stat().st_size << 10:
                    raise ImageError(f"{path}: {name} claims {member.size} bytes")
                names.add(name)
            is_layout = {"oci-layout", "index.json"} <= names
            if not is_layout and "manifest.json" not in names:
                return None
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, ValueError, EOFError):
        return None
    return Layout(folder) if is_layout else Saved(folder)


class Saved:
    """What ``docker save`` writes, or wrote before it wrote OCI layouts, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(
        self, store: Store, name: str | None, architecture: str, progress: Progress, limits: Limits
    ) -> Image:
        """Brings an image into the store, which must be held for writing.

        Raises:
            ImageError: a digest is wrong, a part is missing, no image of that name or architecture.
        """
        entry = self._entry(name)
        config = self._config(entry["Config"])
        if config.get("architecture", architecture) != architecture:
            raise ImageError(f"the image is for {config['architecture']}, not for {architecture}")
        paths = [self._part(part) for part in entry["Layers"]]

        def layer(descriptor: Mapping[str, Any], diff: str) -> str:
            path: Path = descriptor["path"]
            progress(f"layer {plain_digest(diff)[:12]}, {path.stat().st_size >> 10} KiB")
            with path.open("rb") as blob:
                return convert_layer(store, blob, path.stat().st_size, plain_digest(diff), limits)

        return image_of({"layers": [{"path": path} for path in paths]}, config, layer)

    def _entry(self, name: str | None) -> Mapping[str, Any]:
        entries = json.loads((self._folder / "manifest.json").read_text())
        tags = [tag for entry in entries for tag in entry.get("RepoTags") or []]
        if name is not None:
            entries = [entry for entry in entries if name in (entry.get("RepoTags") or [])]
        if len(entries) != 1:
            raise ImageError(
                f"{len(entries)} images of the archive fit {name or 'no name'!r}",
                remedy=f"choose one with --ref: {', '.join(tags) or 'none has a name'}",
            )
        entry: Mapping[str, Any] = entries[0]
        return entry

    def _config(self, part: str) -> Any:
        data = self._part(part).read_bytes()
        wanted = Path(part).name.removesuffix(".json")
        if hashlib.sha256(data).hexdigest() != wanted:
            raise ImageError(f"{part} of the archive does not have the digest that names it")
        return json.loads(data)

    def _part(self, name: str) -> Path:
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder.resolve()) or not path.is_file():
            raise ImageError(f"{name!r} is not in the archive")
        return path
