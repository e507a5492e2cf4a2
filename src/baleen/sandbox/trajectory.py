"""The trajectory log: what was done in a box, in one order, never lost once acknowledged.

One append-only file per box, written by its edge alone. After a magic line come records::

    u32 length | u32 CRC-32 of the body | body           (little-endian; body is MessagePack)
    body = [seq, previous hash, monotonic ns, wall ns, kind, key, payload]

``hash`` of a record is SHA-256 over its body, which holds the previous record's hash: a chain.
Records are synced (fdatasync) before the act that relies on them: INTENT before dispatch, RESULT
before the reply. Output beyond 64 KiB per stream lies in ``<log>.blobs/<sha256>``, synced before
its record. A torn last record is cut off on opening; damage before the last record is an error.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from .errors import TrajectoryError

MAGIC = b"baleen-trajectory 1\n"
VERSION = 1
INLINE_BYTES = 64 << 10
_HEADER = struct.Struct("<II")
_GENESIS = bytes(32)
_ARRAY_OF_SEVEN = 0x97


class Kind(StrEnum):
    """What a record tells."""

    OPEN = "open"
    """The box came to be; payload: its specification."""
    INTENT = "intent"
    """An operation is about to be dispatched; payload: op, arguments' digest, arguments."""
    RESULT = "result"
    """An operation ended; payload: the intent's seq and the result."""
    SNAPSHOT = "snapshot"
    """The box's disk was kept as a layer."""
    FORK = "fork"
    """Another box began as a copy of this one."""
    PAUSE = "pause"
    RESUME = "resume"
    NET_POLICY = "net-policy"
    INFRA_FAIL = "infra-fail"
    """Something that is not the command's doing went wrong; payload: cause, text, intent's seq."""
    CLOSE = "close"
    """The box ended; payload: its cause."""


class Record(NamedTuple):
    """One entry of the log."""

    seq: int
    kind: Kind
    key: str | None
    payload: dict[str, Any]
    monotonic_ns: int
    wall_ns: int
    offset: int


@dataclass
class _Tail:
    seq: int
    digest: bytes
    size: int


class Log:
    """An open log with its single writer; append is thread-safe."""

    def __init__(self, path: Path, fd: int, tail: _Tail) -> None:
        self.path = path
        self._fd = fd
        self._tail = tail
        self._lock = threading.Lock()
        self.sync_time_s = 0.0
        """Recent cost of a sync: a fast disk needs no thread of its own to wait in."""

    @classmethod
    def create(cls, path: Path) -> Log:
        """Starts a new log.

        Raises:
            TrajectoryError: the file exists or cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise TrajectoryError(
                f"{path} exists already",
                remedy="a log belongs to one box: attach to that box, or choose another path",
            ) from None
        except OSError as error:
            raise TrajectoryError(f"cannot create {path}: {error.strerror}") from error
        log = cls(path, fd, _Tail(0, _GENESIS, 0))
        log._write(MAGIC)
        return log

    def open_with(self, payload: dict[str, Any]) -> None:
        """Writes the first record and makes the file's name durable, so the log itself is."""
        self.append(Kind.OPEN, payload)
        _sync_folder(self.path.parent)

    @classmethod
    def open(cls, path: Path) -> Log:
        """Opens an existing log for appending; a torn last record is cut off."""
        tail = _Tail(0, _GENESIS, len(MAGIC))
        for record, digest, end in _scan(path, repair=True):
            tail = _Tail(record.seq + 1, digest, end)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(fd, tail.size)
        return cls(path, fd, tail)

    @property
    def next_seq(self) -> int:
        return self._tail.seq

    def append(
        self, kind: Kind, payload: dict[str, Any], key: str | None = None, *, sync: bool = True
    ) -> Record:
        """Writes one record and, by default, waits until it is on disk.

        Raises:
            TrajectoryError: the disk refused it; the log is as it was before.
        """
        with self._lock:
            seq, offset = self._tail.seq, self._tail.size
            clock, wall = time.monotonic_ns(), time.time_ns()
            body: bytes = msgpack.packb(
                [seq, self._tail.digest, clock, wall, kind.value, key, payload],
                use_bin_type=True,
                unicode_errors="surrogateescape",
            )
            self._write(_HEADER.pack(len(body), zlib.crc32(body)) + body)
            self._tail.seq, self._tail.digest = seq + 1, hashlib.sha256(body).digest()
        if sync:
            self.sync()
        return Record(seq, kind, key, payload, clock, wall, offset)

    def _write(self, data: bytes) -> None:
        start = self._tail.size
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], start + done)
        except OSError as error:
            os.ftruncate(self._fd, start)
            raise TrajectoryError(
                f"cannot append to {self.path}: {error.strerror}",
                remedy="free disk space; nothing was run",
            ) from error
        self._tail.size = start + len(data)

    def sync(self) -> None:
        """Returns when everything appended so far is on disk."""
        started = time.monotonic()
        try:
            os.fdatasync(self._fd)
            self.sync_time_s = 0.7 * self.sync_time_s + 0.3 * (time.monotonic() - started)
        except OSError as error:
            raise TrajectoryError(f"cannot sync {self.path}: {error.strerror}") from error

    def read_at(self, offset: int) -> Record:
        """Reads the record that begins at ``offset``."""
        with self.path.open("rb") as file:  # the log may be closed for writing already
            length, crc = _HEADER.unpack(os.pread(file.fileno(), _HEADER.size, offset))
            body = os.pread(file.fileno(), length, offset + _HEADER.size)
        if zlib.crc32(body) != crc:
            raise TrajectoryError(f"{self.path}: damaged record at byte {offset}")
        return _decode(body, offset)[0]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def keep(self, data: bytes) -> dict[str, Any]:
        """Returns a reference for output: the bytes themselves if short, else a blob's digest."""
        digest = hashlib.sha256(data).hexdigest()
        if len(data) <= INLINE_BYTES:
            return {"sha256": digest, "size": len(data), "inline": data}
        folder = blob_folder(self.path)
        blob = folder / digest
        if not blob.exists():
            try:
                _write_blob(folder, blob, data)
            except OSError as error:
                raise TrajectoryError(f"cannot write {blob}: {error.strerror}") from error
        return {"sha256": digest, "size": len(data)}


def blob_folder(path: Path) -> Path:
    """Where a log's long outputs lie."""
    return path.with_name(path.name + ".blobs")


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
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fetch(path: Path, reference: dict[str, Any]) -> bytes:
    """Returns output that :meth:`Log.keep` stored, its digest checked."""
    inline = reference.get("inline")
    data: bytes = (
        inline if inline is not None else (blob_folder(path) / reference["sha256"]).read_bytes()
    )
    if hashlib.sha256(data).hexdigest() != reference["sha256"]:
        raise TrajectoryError(f"{path}: output {reference['sha256']} is damaged")
    return data


def read(path: Path) -> Iterator[Record]:
    """Yields the records of a log, chain and checksums verified; a torn last record is left out.

    Raises:
        TrajectoryError: not a log of this version, or damaged before its last record.
    """
    for record, _, _ in _scan(path, repair=True):
        yield record


def verify(path: Path) -> int:
    """Checks a whole log with its blobs and counts the records; a torn end is an error too."""
    count = 0
    for record, _, _ in _scan(path, repair=False):
        count += 1
        if record.kind is Kind.RESULT:
            for name in ("stdout", "stderr"):
                if name in record.payload:
                    fetch(path, record.payload[name])
    return count


def _scan(path: Path, *, repair: bool) -> Iterator[tuple[Record, bytes, int]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"cannot read {path}: {error.strerror}") from error
    if not data.startswith(MAGIC):
        if repair and MAGIC.startswith(data):
            return
        raise TrajectoryError(f"{path} is not a trajectory log of version {VERSION}")
    offset, seq, digest = len(MAGIC), 0, _GENESIS
    while offset < len(data):
        end = _whole_record(data, offset)
        if end is None:
            # Only the last record may be torn: a crash cannot damage what was synced before it.
            if repair and not _any_record_after(data, offset):
                return
            raise TrajectoryError(f"{path}: damaged record at byte {offset} of {len(data)}")
        body = data[offset + _HEADER.size : end]
        record, previous = _decode(body, offset)
        if record.seq != seq or previous != digest:
            raise TrajectoryError(f"{path}: record {seq} at byte {offset} breaks the chain")
        digest = hashlib.sha256(body).digest()
        yield record, digest, end
        offset, seq = end, seq + 1


def _whole_record(data: bytes, offset: int) -> int | None:
    """End of the record at ``offset``; None where it is torn or damaged."""
    if len(data) - offset < _HEADER.size:
        return None
    length, crc = _HEADER.unpack_from(data, offset)
    end: int = offset + _HEADER.size + length
    if end > len(data) or zlib.crc32(data[offset + _HEADER.size : end]) != crc:
        return None
    return end


def _any_record_after(data: bytes, offset: int) -> bool:
    """Whether a whole record follows somewhere: then the damage is not a torn end."""
    for start in range(offset + 1, len(data) - _HEADER.size):
        # Every body begins with MessagePack's array of seven: cheap to test before the checksum.
        if data[start + _HEADER.size] == _ARRAY_OF_SEVEN and _whole_record(data, start) is not None:
            return True
    return False


def _decode(body: bytes, offset: int) -> tuple[Record, bytes]:
    try:
        seq, previous, clock, wall, kind, key, payload = msgpack.unpackb(
            body, raw=False, unicode_errors="surrogateescape"
        )
        return Record(seq, Kind(kind), key, payload, clock, wall, offset), previous
    except ValueError as error:
        raise TrajectoryError(f"record at byte {offset} cannot be read: {error}") from error
