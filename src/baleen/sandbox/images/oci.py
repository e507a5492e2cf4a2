"""OCI image layouts: an index, manifests and blobs by digest, in a folder."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .base import Config, Image, LayerRef
from .compression import opened
from .errors import ImageError
from .limits import Limits, Meter
from .store import Store
from .tarball import read_tar

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_DIGEST = "sha256:"
MAX_JSON_BYTES = 8 << 20

Progress = Callable[[str], None]
"""Is told one line about each step."""


def own_architecture() -> str:
    """This machine's architecture as images name it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def choose(index: Mapping[str, Any], architecture: str) -> Mapping[str, Any]:
    """The entry of a multi-architecture index that fits.

    Raises:
        ImageError: none does; names those there are.
    """
    entries = index.get("manifests", [])
    offered = []
    for entry in entries:
        about = entry.get("platform") or {}
        if about.get("architecture", architecture) == "unknown":
            continue  # attestations
        if (
            about.get("architecture", architecture) == architecture
            and about.get("os", "linux") == "linux"
        ):
            chosen: Mapping[str, Any] = entry
            return chosen
        offered.append(f"{about.get('os')}/{about.get('architecture')}")
    raise ImageError(
        f"the image is not offered for linux/{architecture}, only {', '.join(offered) or 'nothing'}"
    )


def config_of(data: Mapping[str, Any]) -> Config:
    """What runs in boxes of an OCI image, from its config blob."""
    inner = data.get("config") or {}
    env = dict(entry.split("=", 1) for entry in inner.get("Env") or [] if "=" in entry)
    return Config(
        env=env,
        user=inner.get("User") or "",
        workdir=inner.get("WorkingDir") or "",
        entrypoint=tuple(inner.get("Entrypoint") or ()),
        cmd=tuple(inner.get("Cmd") or ()),
        labels=dict(inner.get("Labels") or {}),
        shell=tuple(inner.get("Shell") or ("/bin/sh", "-c")),
        exposed=tuple(inner.get("ExposedPorts") or ()),
        volumes=tuple(inner.get("Volumes") or ()),
        healthcheck=inner.get("Healthcheck"),
        stop_signal=inner.get("StopSignal") or "",
        on_build=tuple(inner.get("OnBuild") or ()),
    )


def image_of(
    manifest: Mapping[str, Any],
    config: Mapping[str, Any],
    layer: Callable[[Mapping[str, Any], str], str],
) -> Image:
    """An image from manifest and config; ``layer`` turns a descriptor and diff id into a layer.

    Raises:
        ImageError: manifest and config do not fit each other.
    """
    layers = manifest.get("layers", [])
    diff_ids = (config.get("rootfs") or {}).get("diff_ids", [])
    if len(layers) != len(diff_ids):
        raise ImageError(f"{len(layers)} layers, but {len(diff_ids)} diff ids in the config")
    refs = [LayerRef(layer(x, diff)) for x, diff in zip(layers, diff_ids, strict=True)]
    return Image(tuple(refs), None, config_of(config), config.get("architecture", ""))


class _Hashing:
    """A reader that knows the digest of what has passed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        data: bytes = self._stream.read(count)
        self.digest.update(data)
        return data


def convert_layer(
    store: Store,
    blob: BinaryIO,
    packed_bytes: int,
    diff_id: str | None,
    limits: Limits | None = None,
) -> str:
    """Makes a layer of a tar archive, packed or not, and checks its diff id; returns the digest.

    Raises:
        ImageError: damaged, or of another digest.
        UnsafeImageError: it climbs out of its root or is a bomb.
    """
    known = store.converted(diff_id) if diff_id else None
    if known is not None:
        return known
    found = ""

    def fill(writer: Any) -> Any:
        nonlocal found
        with opened(blob) as stream:
            hashing = _Hashing(stream)
            tree = read_tar(hashing, writer, Meter(limits or Limits(), packed_bytes))  # type: ignore[arg-type]
        found = hashing.digest.hexdigest()
        if diff_id is not None and diff_id != found:
            raise ImageError(
                f"a layer's data is {_DIGEST}{found}, announced was {_DIGEST}{diff_id}"
            )
        return tree

    digest = store.add_layer(fill)
    store.note_converted(found, digest)
    return digest


def plain_digest(text: str) -> str:
    """The hexadecimal part of a SHA-256 digest.

    Raises:
        ImageError: of another kind, or none.
    """
    digits = text.removeprefix(_DIGEST)
    if len(digits) != 64 or digits == text or set(digits) - set("0123456789abcdef"):
        raise ImageError(f"{text!r} is not a sha256 digest")
    return digits


class Layout:
    """An OCI layout in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @staticmethod
    def is_at(folder: Path) -> bool:
        return (folder / "oci-layout").is_file() and (folder / "index.json").is_file()

    def _blob(self, descriptor: Mapping[str, Any]) -> Path:
        return self._folder / "blobs/sha256" / plain_digest(descriptor["digest"])

    def _json(self, descriptor: Mapping[str, Any]) -> Any:
        path = self._blob(descriptor)
        try:
            data = path.read_bytes()[:MAX_JSON_BYTES]
        except OSError as error:
            raise ImageError(f"blob {descriptor['digest']} is missing: {error}") from None
        if hashlib.sha256(data).hexdigest() != plain_digest(descriptor["digest"]):
            raise ImageError(f"blob {path} does not have its digest")
        return json.loads(data)

    def names(self) -> list[str]:
        """The names that the index gives its images."""
        return [name for entry in self._index()["manifests"] if (name := _name_of(entry))]

    def _index(self) -> Any:
        return json.loads((self._folder / "index.json").read_text())

    def load(
        self, store: Store, name: str | None, architecture: str, progress: Progress, limits: Limits
    ) -> Image:
        """Brings an image of the layout into the store, which must be held for writing.

        Raises:
            ImageError: a digest is wrong, a blob is missing, no image of that name or architecture.
        """
        entries = self._index().get("manifests", [])
        if name is not None:
            entries = [entry for entry in entries if _name_of(entry) == name]
        if not entries:
            raise ImageError(f"no image {name or ''!r} in {self._folder}: {self.names()}")
        entry = entries[0] if len(entries) == 1 else choose({"manifests": entries}, architecture)
        manifest = self._json(entry)
        while "manifests" in manifest:
            manifest = self._json(choose(manifest, architecture))

        def layer(descriptor: Mapping[str, Any], diff: str) -> str:
            path = self._blob(descriptor)
            progress(f"layer {path.name[:12]}, {path.stat().st_size >> 10} KiB")
            with path.open("rb") as blob:
                if hashlib.file_digest(blob, "sha256").hexdigest() != path.name:
                    raise ImageError(f"blob {path} does not have its digest")
                blob.seek(0)
                size = path.stat().st_size
                return convert_layer(store, blob, size, plain_digest(diff), limits)

        return image_of(manifest, self._json(manifest["config"]), layer)


def _name_of(entry: Mapping[str, Any]) -> str | None:
    name: str | None = (entry.get("annotations") or {}).get("org.opencontainers.image.ref.name")
    return name
