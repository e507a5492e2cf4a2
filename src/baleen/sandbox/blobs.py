"""Long outputs beside a log: one file per digest, synced before the record that names it."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from .errors import TrajectoryError

INLINE_BYTES = 64 << 10
"""Output up to here lies in the record itself."""


def blob_folder(path: Path) -> Path:
    """Where a log's long outputs lie."""
    return path.with_name(path.name + ".blobs")


def keep(path: Path, data: bytes) -> dict[str, Any]:
    """Returns a reference for output: the bytes themselves if short, else a blob's digest.

    Raises:
        TrajectoryError: the disk refused the blob.
    """
    digest = hashlib.sha256(data).hexdigest()
    if len(data) <= INLINE_BYTES:
        return {"sha256": digest, "size": len(data), "inline": data}
    folder = blob_folder(path)
    blob = folder / digest
    if not blob.exists():
        try:
            _write_blob(folder, blob, data)
        except OSError as error:
            raise TrajectoryError(f"cannot write {blob}: {error.strerror}") from error
    return {"sha256": digest, "size": len(data)}


def fetch(path: Path, reference: dict[str, Any]) -> bytes:
    """Returns output that :func:`keep` stored, its digest checked."""
    inline = reference.get("inline")
    data: bytes = (
        inline if inline is not None else (blob_folder(path) / reference["sha256"]).read_bytes()
    )
    if hashlib.sha256(data).hexdigest() != reference["sha256"]:
        raise TrajectoryError(f"{path}: output {reference['sha256']} is damaged")
    return data


def _write_blob(folder: Path, blob: Path, data: bytes) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    partial = blob.with_suffix(f".partial-{threading.get_ident()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(blob)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
