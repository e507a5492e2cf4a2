"""The trajectory: what was done in a box, in one order, never lost once acknowledged.

A log is written by its box's edge alone, into segments ``<log>``, ``<log>.1``, ``<log>.2``... Each
begins with a magic line; then come records::

    u32 length | u32 CRC-32 of the body | body           (little-endian; body is MessagePack)
    body = [seq, previous hash, monotonic ns, wall ns, kind, key, payload]

``hash`` of a record is SHA-256 over its body, which holds the previous record's hash: a chain
through all segments. Output beyond 64 KiB per stream lies in ``<log>.blobs/<sha256>``. A torn last
record is cut off on opening; damage before the last record is an error. :mod:`.log` writes, this
module reads.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from .blobs import fetch
from .errors import TrajectoryError

MAGIC = b"baleen-trajectory 1\n"
VERSION = 1
HEADER = struct.Struct("<II")
GENESIS = bytes(32)
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
    """Bytes before it, counted through all segments."""


class Step(NamedTuple):
    """A record with what a writer needs to go on after it."""

    record: Record
    digest: bytes
    segment: int
    end: int
    """Where the next record begins in the segment's file."""


def segment_path(path: Path, number: int) -> Path:
    """The file of a log's segment."""
    return path.with_name(f"{path.name}.{number}") if number else path


def segments(path: Path) -> Iterator[Path]:
    """The files of a log, in order."""
    yield path
    number = 1
    # One that is missing in between is yielded, too: whoever reads it will say so.
    while any(segment_path(path, later).exists() for later in (number, number + 1)):
        yield segment_path(path, number)
        number += 1


def read(path: Path) -> Iterator[Record]:
    """Yields the records of a log, chain and checksums verified; a torn last record is left out.

    Raises:
        TrajectoryError: not a log of this version, or damaged before its last record.
    """
    for step in scan(path, repair=True):
        yield step.record


def verify(path: Path) -> int:
    """Checks a whole log with its blobs and counts the records; a torn end is an error too."""
    count = 0
    for step in scan(path, repair=False):
        count += 1
        if step.record.kind is Kind.RESULT:
            for name in ("stdout", "stderr"):
                if name in step.record.payload:
                    fetch(path, step.record.payload[name])
    return count


def scan(path: Path, *, repair: bool) -> Iterator[Step]:
    """Walks through every record; ``repair`` forgives a torn last one."""
    files = list(segments(path))
    seq, digest, base = 0, GENESIS, 0
    for number, file in enumerate(files):
        try:
            data = file.read_bytes()
        except OSError as error:
            raise TrajectoryError(f"cannot read {file}: {error.strerror}") from error
        is_last = number == len(files) - 1
        for body, offset, end in _bodies(file, data, repair=repair and is_last):
            record, previous = decode(body, base + offset)
            if record.seq != seq or previous != digest:
                raise TrajectoryError(f"{file}: record {seq} at byte {offset} breaks the chain")
            digest = hashlib.sha256(body).digest()
            seq += 1
            yield Step(record, digest, number, end)
        base += len(data)


def _bodies(file: Path, data: bytes, *, repair: bool) -> Iterator[tuple[bytes, int, int]]:
    """Body, begin and end of each record of one segment."""
    if not data.startswith(MAGIC):
        if repair and MAGIC.startswith(data):
            return
        raise TrajectoryError(f"{file} is not a trajectory log of version {VERSION}")
    offset = len(MAGIC)
    while offset < len(data):
        end = _whole_record(data, offset)
        if end is None:
            # Only the last record may be torn: a crash cannot damage what was synced before it.
            if repair and not _any_record_after(data, offset):
                return
            raise TrajectoryError(f"{file}: damaged record at byte {offset} of {len(data)}")
        yield data[offset + HEADER.size : end], offset, end
        offset = end


def _whole_record(data: bytes, offset: int) -> int | None:
    """End of the record at ``offset``; None where it is torn or damaged."""
    if len(data) - offset < HEADER.size:
        return None
    length, crc = HEADER.unpack_from(data, offset)
    end: int = offset + HEADER.size + length
    if end > len(data) or zlib.crc32(data[offset + HEADER.size : end]) != crc:
        return None
    return end


def _any_record_after(data: bytes, offset: int) -> bool:
    """Whether a whole record follows somewhere: then the damage is not a torn end."""
    for start in range(offset + 1, len(data) - HEADER.size):
        # Every body begins with MessagePack's array of seven: cheap to test before the checksum.
        if data[start + HEADER.size] == _ARRAY_OF_SEVEN and _whole_record(data, start) is not None:
            return True
    return False


def decode(body: bytes, offset: int) -> tuple[Record, bytes]:
    """A record and the hash of the one before it."""
    try:
        seq, previous, clock, wall, kind, key, payload = msgpack.unpackb(
            body, raw=False, unicode_errors="surrogateescape"
        )
        return Record(seq, Kind(kind), key, payload, clock, wall, offset), previous
    except ValueError as error:
        raise TrajectoryError(f"record at byte {offset} cannot be read: {error}") from error
