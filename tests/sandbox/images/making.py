"""Archives, layouts and small root file systems for the tests of images."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from baleen.sandbox.images.erofs import ImageWriter
from baleen.sandbox.images.tree import Node, folder, put

PROGRAMS = ("sh", "cat", "ls", "stat", "id", "env", "rm", "mkdir", "chmod", "chown", "touch", "ln")


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar(*entries: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo, **options: Any) -> bytes:
    """An archive of entries, files with their data."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, **options) as archive:
        for item in entries:
            info, data = item if isinstance(item, tuple) else (item, b"")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, **fields), data


def add_file(root: Node, path: bytes, data: bytes, writer: ImageWriter, **fields: Any) -> Node:
    node = Node(stat.S_IFREG | fields.pop("mode", 0o644), **fields)
    writer.add(node, io.BytesIO(data).read, len(data))
    put(root, path, node)
    return node


def layer_of(files: Mapping[str, bytes]) -> Callable[[ImageWriter], Node]:
    """Fills a layer with files."""

    def fill(writer: ImageWriter) -> Node:
        root = folder()
        for path, data in files.items():
            add_file(root, path.encode(), data, writer)
        return root

    return fill


def small_rootfs(target: Path) -> Path:
    """A root file system of a few megabytes: a shell, some programs, the libraries they need."""
    for name in ("bin", "etc", "tmp", "root"):
        (target / name).mkdir(parents=True)
    needed = set()
    for program in PROGRAMS:
        source = Path(shutil.which(program) or f"/bin/{program}").resolve()
        shutil.copy(source, target / "bin" / program)
        listed = subprocess.run(["ldd", source], capture_output=True, text=True, check=True).stdout
        needed |= {word for word in listed.split() if word.startswith("/")}
    for library in needed:
        place = target / library.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(library).resolve(), place)
    (target / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/tmp:/bin/sh\n")
    (target / "etc/group").write_text("root:x:0:\nbob:x:1000:\n")
    return target


def tar_of(path: Path) -> bytes:
    """An archive of a folder, everything root's."""
    out = io.BytesIO()

    def owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        return info

    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(path, ".", filter=owned_by_root)
    return out.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def packed(data: bytes, how: str) -> bytes:
    if how == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return {"gzip": gzip.compress, "xz": lzma.compress, "none": bytes}[how](data)


class Blobs:
    """An image as registries and layouts hold it: blobs by digest, and its manifest."""

    def __init__(
        self,
        layers: list[bytes],
        *,
        how: str = "gzip",
        config: Mapping[str, Any] | None = None,
        architecture: str = "amd64",
    ) -> None:
        self.blobs: dict[str, bytes] = {}
        described = []
        for layer in layers:
            blob = packed(layer, how)
            described.append(self._add(blob, f"application/vnd.oci.image.layer.v1.tar+{how}"))
        image = {
            "architecture": architecture,
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self._add(
                json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json"
            ),
            "layers": described,
        }
        self.manifest = json.dumps(manifest).encode()
        self.platform = {"architecture": architecture, "os": "linux"}

    def _add(self, data: bytes, kind: str) -> dict[str, Any]:
        self.blobs[digest(data)] = data
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    @property
    def descriptor(self) -> dict[str, Any]:
        kind = "application/vnd.oci.image.manifest.v1+json"
        return {
            "mediaType": kind,
            "digest": digest(self.manifest),
            "size": len(self.manifest),
            "platform": self.platform,
        }


def layout(target: Path, *images: Blobs, names: tuple[str, ...] = ()) -> Path:
    """Writes an OCI layout."""
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)
    entries = []
    for index, image in enumerate(images):
        for name, data in {**image.blobs, digest(image.manifest): image.manifest}.items():
            (blobs / name.removeprefix("sha256:")).write_bytes(data)
        described = image.descriptor
        if names:
            described["annotations"] = {"org.opencontainers.image.ref.name": names[index]}
        entries.append(described)
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    return target


def facts(path: str) -> dict[str, Any]:
    """What can be seen of every file below a folder."""
    found = {}
    for at, folders, files in os.walk(path):
        for name in [*folders, *files]:
            full = os.path.join(at, name)  # noqa: PTH118
            meta = os.lstat(full)
            content: bytes | str = b""
            if stat.S_ISREG(meta.st_mode):
                content = hashlib.sha256(Path(full).read_bytes()).hexdigest()
            elif stat.S_ISLNK(meta.st_mode):
                content = os.readlink(os.fsencode(full))  # noqa: PTH115
            size = 0 if stat.S_ISDIR(meta.st_mode) else meta.st_size
            links = 0 if stat.S_ISDIR(meta.st_mode) else meta.st_nlink
            key = os.path.relpath(full, path)
            found[key] = (
                meta.st_mode,
                meta.st_uid,
                meta.st_gid,
                size,
                int(meta.st_mtime) if not stat.S_ISLNK(meta.st_mode) else 0,
                meta.st_rdev,
                links,
                content,
            )
    return found
