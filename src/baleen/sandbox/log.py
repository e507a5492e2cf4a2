"""The writer of a trajectory: one per log, in the edge.

Appending puts bytes into the file; whether they are on disk is another question, answered by
:meth:`Log.sync` for one log or by :mod:`.journal` for many at once.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from .blobs import sync_folder
from .errors import TrajectoryError
from .trajectory import (
    GENESIS,
    HEADER,
    MAGIC,
    Kind,
    Record,
    decode,
    scan,
    segment_path,
    segments,
)

SEGMENT_BYTES = 64 << 20
"""A segment that has grown to this is closed and the next one begun."""


class Span(NamedTuple):
    """Bytes of a segment that may not be on disk yet."""

    path: str
    offset: int
    data: bytes


class Log:
    """An open log with its single writer."""

    def __init__(self, path: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.path = path
        self._segment_bytes = segment_bytes
        self._fd = -1
        self._lock = threading.Lock()
        """A long sync runs in a thread; meanwhile the file must not be exchanged."""
        self._size = 0
        self._synced = 0
        self._seq = 0
        self._digest = GENESIS
        self._bases = [0]
        """Where each segment begins, counted through all of them."""

    @classmethod
    def create(cls, path: Path, *, segment_bytes: int = SEGMENT_BYTES) -> Log:
        """Starts a new log.

        Raises:
            TrajectoryError: the file exists or cannot be written.
        """
        log = cls(path, segment_bytes=segment_bytes)
        try:
            log._begin_segment()
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            log._begin_segment()
        return log

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        on_record: Callable[[Record], None] | None = None,
    ) -> Log:
        """Opens an existing log for appending; a torn last record is cut off.

        ``on_record`` gets the records that are there: opening has to read them anyway.
        """
        log = cls(path, segment_bytes=segment_bytes)
        files = list(segments(path))
        last, end = 0, len(MAGIC)
        for step in scan(path, repair=True):
            log._seq, log._digest = step.record.seq + 1, step.digest
            last, end = step.segment, step.end
            if on_record is not None:
                on_record(step.record)
        if last < len(files) - 1:
            last, end = len(files) - 1, len(MAGIC)  # begun and nothing written to it yet
        sizes = [file.stat().st_size for file in files[:-1]]
        log._bases = [sum(sizes[:number]) for number in range(len(files))]
        log._fd = os.open(files[last], os.O_RDWR | os.O_CLOEXEC)
        log._size = end  # and nothing is known to be on disk: the last writer may have been killed
        os.ftruncate(log._fd, end)
        os.pwrite(log._fd, MAGIC, 0)
        return log

    @property
    def next_seq(self) -> int:
        return self._seq

    @property
    def _segment(self) -> Path:
        return segment_path(self.path, len(self._bases) - 1)

    def _begin_segment(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._fd = os.open(self._segment, flags, 0o600)
        except FileExistsError:
            raise TrajectoryError(
                f"{self._segment} exists already",
                remedy="a log belongs to one box: attach to that box, or choose another path",
            ) from None
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TrajectoryError(f"cannot create {self._segment}: {error.strerror}") from error
        self._size = self._synced = 0
        try:
            self._write(MAGIC)
        except TrajectoryError:
            os.close(self._fd)
            self._segment.unlink()
            raise

    def append(
        self, kind: Kind, payload: dict[str, Any], key: str | None = None, *, sync: bool = True
    ) -> Record:
        """Writes one record and, by default, waits until it is on disk.

        Raises:
            TrajectoryError: the disk refused it; the log is as it was before.
        """
        if self._fd < 0:
            raise TrajectoryError(f"{self.path} is closed", remedy="nothing was run")
        if self._size >= self._segment_bytes:
            self._roll()
        offset = self._bases[-1] + self._size
        clock, wall = time.monotonic_ns(), time.time_ns()
        body: bytes = msgpack.packb(
            [self._seq, self._digest, clock, wall, kind.value, key, payload],
            use_bin_type=True,
            unicode_errors="surrogateescape",
        )
        self._write(HEADER.pack(len(body), zlib.crc32(body)) + body)
        record = Record(self._seq, kind, key, payload, clock, wall, offset)
        self._seq, self._digest = self._seq + 1, hashlib.sha256(body).digest()
        if sync:
            self.sync()
        return record

    def _roll(self) -> None:
        """Closes a full segment for good, on disk, before the next one holds a record."""
        self.sync()
        full, size = self._fd, self._size
        self._bases.append(self._bases[-1] + size)
        try:
            with self._lock:
                self._begin_segment()
        except (TrajectoryError, OSError) as error:
            self._bases.pop()
            self._fd, self._size, self._synced = full, size, size
            raise TrajectoryError(f"cannot go on after {self._segment}: {error}") from error
        os.close(full)
        self.sync()

    def _write(self, data: bytes) -> None:
        start = self._size
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
        self._size = start + len(data)

    @property
    def unsynced_bytes(self) -> int:
        return self._size - self._synced if self._fd >= 0 else 0

    def unsynced(self) -> Span:
        """What has been appended since the last sync."""
        data = os.pread(self._fd, self.unsynced_bytes, self._synced)
        return Span(os.fspath(self._segment), self._synced, data)

    def mark_synced(self, span: Span) -> None:
        """Notes that somebody else has put a span on disk."""
        if span.path == os.fspath(self._segment):
            self._synced = max(self._synced, span.offset + len(span.data))

    def sync(self) -> None:
        """Returns when everything appended so far is on disk, the file's name too."""
        with self._lock:
            size = self._size
            try:
                os.fdatasync(self._fd)
                if self._synced == 0:
                    sync_folder(self.path.parent)
            except OSError as error:
                raise TrajectoryError(f"cannot sync {self.path}: {error.strerror}") from error
            self._synced = max(self._synced, size)

    def read_at(self, offset: int) -> Record:
        """Reads the record that begins at ``offset``."""
        number = bisect.bisect_right(self._bases, offset) - 1
        start = offset - self._bases[number]
        with segment_path(self.path, number).open("rb") as file:  # it may be closed for writing
            length, crc = HEADER.unpack(os.pread(file.fileno(), HEADER.size, start))
            body = os.pread(file.fileno(), length, start + HEADER.size)
        if zlib.crc32(body) != crc:
            raise TrajectoryError(f"{self.path}: damaged record at byte {offset}")
        return decode(body, offset)[0]

    def discard(self) -> None:
        """Closes the log and removes its first segment: nothing in it was of use to anybody."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
