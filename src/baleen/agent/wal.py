"""An append-only file of framed records that survives `kill -9` at any byte.

Layout, little-endian: 8 bytes of magic (`BLNWAL`, a zero byte, the version), then frames of

    u32 body length | u32 CRC-32 of the next two | u64 sequence number | body

Sequence numbers count from 0 without a gap; a body is one msgpack map. `append` hands the bytes to
the kernel at once, which is enough to survive the death of the process; `sync` makes them survive
the death of the machine. A torn tail is cut when the file is opened. Damage that valid records
follow is no torn tail: it is refused, because cutting there would drop records that were acted on.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from baleen.agent.errors import RunBusyError, WalError

VERSION = 1
MAGIC = b"BLNWAL\x00" + bytes([VERSION])
_HEAD = struct.Struct("<IIQ")
_SEQUENCE = struct.Struct("<Q")
_MAX_BODY_BYTES = 1 << 28


class Scan(NamedTuple):
    """The valid records of a file and the length of the part that holds them."""

    bodies: list[Mapping[str, Any]]
    size_bytes: int


class Wal:
    """One open log, held exclusively by this process until it is closed or the process dies."""

    def __init__(self, path: Path, descriptor: int, next_sequence: int) -> None:
        self.path = path
        self.next_sequence = next_sequence
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path) -> Wal:
        """Begin a new log.

        Raises:
            FileExistsError: there is one already.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        _lock(descriptor, path)
        os.write(descriptor, MAGIC)
        os.fsync(descriptor)
        _sync_folder(path.parent)
        return cls(path, descriptor, 0)

    @classmethod
    def open(cls, path: Path) -> tuple[Wal, list[Mapping[str, Any]]]:
        """Continue a log: lock it, cut its torn tail, return it with the bodies it holds.

        Raises:
            RunBusyError: another process has it open.
            WalError: it is damaged before its tail, or of another version.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            _lock(descriptor, path)
            scan = scan_bytes(path.read_bytes(), path)
            if scan.size_bytes == 0:  # died before the magic was complete
                os.ftruncate(descriptor, 0)
                os.write(descriptor, MAGIC)
            else:
                os.ftruncate(descriptor, scan.size_bytes)
            os.fdatasync(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, len(scan.bodies)), scan.bodies

    def append(self, body: Mapping[str, Any]) -> None:
        """Write one record; it is in the file, whole, when this returns.

        Raises:
            WalError: the file system took only a part of it (it is full).
        """
        data = frame(self.next_sequence, body)
        start = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            raise WalError(
                f"{self.path}: {error.strerror}", remedy="free some disk space"
            ) from error
        if written != len(data):
            os.ftruncate(self._descriptor, start)
            raise WalError(f"{self.path}: the disk is full", remedy="free some disk space")
        self.next_sequence += 1

    def sync(self) -> None:
        """Return when everything appended so far would survive a power cut."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read(path: Path) -> list[Mapping[str, Any]]:
    """The records of a log that another process may be writing, without touching it."""
    return scan_bytes(path.read_bytes(), path).bodies


def frame(sequence: int, body: Mapping[str, Any]) -> bytes:
    """One record as it stands in the file."""
    import msgpack

    packed: bytes = msgpack.packb(body)
    numbered = _SEQUENCE.pack(sequence) + packed
    return struct.pack("<II", len(packed), zlib.crc32(numbered)) + numbered


def scan_bytes(data: bytes, path: Path) -> Scan:
    """Read every record up to the torn tail, if there is one.

    Raises:
        WalError: not such a log, another version, or damaged in the middle.
    """
    if len(data) < len(MAGIC) and MAGIC.startswith(data):
        return Scan([], 0)
    if data[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise WalError(f"{path} is not the log of a run", remedy="name a folder under runs/")
    if data[len(MAGIC) - 1] != VERSION:
        raise WalError(
            f"{path} has version {data[len(MAGIC) - 1]}, this baleen reads version {VERSION}",
            remedy="use the version of baleen that wrote it",
        )
    bodies: list[Mapping[str, Any]] = []
    offset = len(MAGIC)
    while (found := _frame_at(data, offset, len(bodies))) is not None:
        bodies.append(found.body)
        offset = found.end
    _refuse_damage(data, offset, len(bodies), path)
    return Scan(bodies, offset)


class _Frame(NamedTuple):
    body: Mapping[str, Any]
    end: int


def _frame_at(data: bytes, offset: int, sequence: int | None) -> _Frame | None:
    """The valid record at this offset, with this number if one is asked for."""
    import msgpack

    if offset + _HEAD.size > len(data):
        return None
    length, crc, found_sequence = _HEAD.unpack_from(data, offset)
    end = offset + _HEAD.size + length
    if length > _MAX_BODY_BYTES or end > len(data) or sequence not in (None, found_sequence):
        return None
    if zlib.crc32(memoryview(data)[offset + 8 : end]) != crc:
        return None
    return _Frame(msgpack.unpackb(data[offset + _HEAD.size : end]), end)


def _refuse_damage(data: bytes, offset: int, sequence: int, path: Path) -> None:
    """A torn tail holds the beginning of one record and nothing valid after it."""
    for later in range(offset + 1, len(data) - _HEAD.size + 1):
        number = _SEQUENCE.unpack_from(data, later + 8)[0]
        if sequence < number < sequence + len(data) and _frame_at(data, later, None):
            raise WalError(
                f"{path}: record {sequence} at byte {offset} is damaged, but record {number} "
                "after it is whole",
                remedy="restore the file from a copy; cutting it here would lose recorded commands",
            )


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunBusyError(
            f"{path.parent} is in use by another process", remedy="wait for it, or end it first"
        ) from None


def _sync_folder(folder: Path) -> None:
    """A new file survives a power cut only when its folder does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
