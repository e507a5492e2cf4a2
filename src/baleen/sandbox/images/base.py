"""The contract of images: what a box is handed, and what an image is.

An image is a list of layers, lowest first, over a base (nothing, ``host``, or a folder), and a
config. A layer is one EROFS file in the store, named by the SHA-256 of its bytes. A box gets
:class:`Overlay` objects: where an overlay is mounted, and its lowers, top first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

FORMAT = 1
"""Version of image manifests."""


@dataclass(frozen=True)
class Erofs:
    """A lower that is an EROFS file; the launcher mounts it once for all boxes."""

    path: str


Lower = str | Erofs
"""A folder of the host, or an EROFS file."""


@dataclass(frozen=True)
class Overlay:
    """An overlay of a box: where it is mounted and its lowers, top first."""

    at: str
    lowers: tuple[Lower, ...]

    def to_wire(self) -> dict[str, Any]:
        lowers = [x if isinstance(x, str) else {"erofs": x.path} for x in self.lowers]
        return {"at": self.at, "lower": lowers}


@dataclass(frozen=True)
class Config:
    """How commands run in a box of this image unless they say otherwise; as in OCI images."""

    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    exposed: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    healthcheck: Mapping[str, Any] | None = None
    stop_signal: str = ""
    on_build: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Plain data without what is unset."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}
        return {k: v for k, v in plain.items() if v not in ({}, [], "", None)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Config:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**plain)

    def under(self, upper: Config) -> Config:
        """This config where ``upper`` says nothing else; variables and labels are joined."""
        return replace(
            upper,
            env={**self.env, **upper.env},
            labels={**self.labels, **upper.labels},
            user=upper.user or self.user,
            workdir=upper.workdir or self.workdir,
            entrypoint=upper.entrypoint or self.entrypoint,
            cmd=upper.cmd or self.cmd,
        )


@dataclass(frozen=True)
class LayerRef:
    """A layer of an image: its digest, and the overlay of the box that it belongs to."""

    digest: str
    at: str = "/"


@dataclass(frozen=True)
class Image:
    """An image as the store keeps it; immutable, named by the digest of its manifest."""

    layers: tuple[LayerRef, ...] = ()
    """Lowest first."""
    base: str | None = None
    """What lies below the layers: nothing, ``"host"``, or the path of a folder."""
    config: Config = field(default_factory=Config)
    architecture: str = ""

    def manifest(self) -> bytes:
        """The canonical bytes that the digest is made of."""
        data = {
            "format": FORMAT,
            "base": self.base,
            "architecture": self.architecture,
            "layers": [{"digest": x.digest, "at": x.at} for x in self.layers],
            "config": self.config.to_data(),
        }
        return json.dumps(data, sort_keys=True, ensure_ascii=False).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.manifest()).hexdigest()

    @classmethod
    def from_manifest(cls, text: bytes) -> Image:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, this version reads {FORMAT}")
        layers = tuple(LayerRef(x["digest"], x["at"]) for x in data["layers"])
        return cls(layers, data["base"], Config.from_data(data["config"]), data["architecture"])


@dataclass(frozen=True)
class Rootfs:
    """What a box is launched with: its overlays, its config, and the layers that it stands on."""

    overlays: tuple[Overlay, ...]
    config: Config = field(default_factory=Config)
    digests: tuple[str, ...] = ()
    image: Image = field(default_factory=Image)
    """The image, workspace and toolkits included, that a commit of the box stands on."""

    @cached_property
    def image_data(self) -> dict[str, Any]:
        """The image as logs name it."""
        data: dict[str, Any] = json.loads(self.image.manifest())
        return data

    @cached_property
    def has_erofs(self) -> bool:
        return any(isinstance(x, Erofs) for o in self.overlays for x in o.lowers)


def short(digest: str) -> str:
    """A digest as people read it."""
    return digest[:12]


def folder_of(path: str | Path) -> str:
    return str(Path(path).expanduser().resolve())
