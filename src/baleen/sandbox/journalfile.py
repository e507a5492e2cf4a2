"""One of the journal's two files: frames one after the other, put on disk many at a time.

The file is written in whole blocks, past the page cache where the file system offers that: such a
write to blocks that exist already is one request to the disk, with no other thread to wait for.
A sync of the page cache took ten times as long on a busy machine. The last block is written again
as it fills; what it held before is written again as it was.
"""

from __future__ import annotations

import errno
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack

from .blobs import sync_folder
from .log import Span
from .trajectory import HEADER

MAGIC = b"baleen-journal 1\n"
HEAD_BYTES = 512
BLOCK_BYTES = 4096
CHUNK_BYTES = 256 << 10
"""More than this goes to disk in several writes; each is a multiple of the block."""


class JournalFile:
    """A file of a fixed size, allocated ahead of time.

    ``direct=False`` goes through the page cache, as it happens by itself where nothing else works.
    """

    def __init__(self, path: Path, size: int, *, direct: bool = True) -> None:
        self.path = path
        self.size = -(-size // BLOCK_BYTES) * BLOCK_BYTES
        self.generation = 0
        self.boot = ""
        self.end = HEAD_BYTES
        """Where the next frame goes: after those on disk and those that wait for a sync."""
        self.logs: set[str] = set()
        """Files whose bytes this one holds and that are not synced themselves."""
        self._pending = bytearray(HEAD_BYTES)
        """Everything from the block on in which the first byte lies that is not on disk."""
        self._memory = mmap.mmap(-1, CHUNK_BYTES)  # begins at a page, as direct writes must
        is_new = not path.exists()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if is_new or os.fstat(self._fd).st_size != self.size:
            # Written once: a sync of an overwrite needs no change of the file's metadata.
            os.pwrite(self._fd, bytes(self.size), 0)
            os.fsync(self._fd)
            sync_folder(path.parent)
        self._direct = _open_direct(path) if direct else None

    @property
    def is_direct(self) -> bool:
        return self._direct is not None

    def load(self) -> list[Span]:
        """Reads what an earlier edge left."""
        data = os.pread(self._fd, self.size, 0)
        if not data.startswith(MAGIC):
            return []
        self.generation, self.boot = msgpack.unpackb(data[len(MAGIC) + 1 :][: data[len(MAGIC)]])
        spans = []
        for span, end in _spans(data, self.generation):
            spans.append(span)
            self.logs.add(span.path)
            self.end = end
        self._pending = bytearray(data[self.end // BLOCK_BYTES * BLOCK_BYTES : self.end])
        return spans

    def begin(self, generation: int, boot: str) -> None:
        """Starts over; on disk with the next sync."""
        self.generation, self.boot, self.end = generation, boot, HEAD_BYTES
        self.logs = set()
        head: bytes = msgpack.packb([generation, boot])
        self._pending = bytearray((MAGIC + bytes([len(head)]) + head).ljust(HEAD_BYTES, b"\0"))

    def frame(self, span: Span) -> bytes:
        """A span as this file holds it."""
        body: bytes = msgpack.packb([self.generation, *span], unicode_errors="surrogateescape")
        return HEADER.pack(len(body), zlib.crc32(body)) + body

    def has_room(self, frame: bytes) -> bool:
        return self.end + len(frame) <= self.size

    def add(self, frame: bytes, path: str) -> None:
        """Takes a frame of the log at ``path``; on disk with the next sync."""
        self._pending += frame
        self.end += len(frame)
        self.logs.add(path)

    def sync(self) -> None:
        """Returns when everything added is on disk.

        Raises:
            OSError: the disk refused. Nothing is lost here: the next sync writes it again.
        """
        start = (self.end - len(self._pending)) // BLOCK_BYTES * BLOCK_BYTES
        for at in range(0, len(self._pending), CHUNK_BYTES):
            self._write(self._pending[at : at + CHUNK_BYTES], start + at)
        if self._direct is None:
            os.fdatasync(self._fd)
        kept = self.end % BLOCK_BYTES
        self._pending = self._pending[len(self._pending) - kept :]

    def _write(self, data: bytearray, offset: int) -> None:
        """Writes whole blocks; what follows the data in the last one ends the list of frames."""
        length = -(-len(data) // BLOCK_BYTES) * BLOCK_BYTES
        self._memory[:length] = bytes(data).ljust(length, b"\0")
        fd = self._fd if self._direct is None else self._direct
        with memoryview(self._memory) as view, view[:length] as part:
            if os.pwritev(fd, [part], offset) != length:
                raise OSError(errno.EIO, "a write to the journal was cut short")

    def close(self) -> None:
        os.close(self._fd)
        if self._direct is not None:
            os.close(self._direct)
        self._memory.close()


def _open_direct(path: Path) -> int | None:
    """A descriptor that writes past the page cache and returns when the disk has it, if any."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, BLOCK_BYTES) as block:
            # Some file systems open the file and refuse the write. The file's own first block.
            with path.open("rb") as file:
                block[:] = file.read(BLOCK_BYTES)
            with memoryview(block) as view:
                os.pwritev(fd, [view], 0)
    except OSError:
        os.close(fd)
        return None
    return fd


def _spans(data: bytes, generation: int) -> Iterator[tuple[Span, int]]:
    offset = HEAD_BYTES
    while offset + HEADER.size <= len(data):
        length, crc = HEADER.unpack_from(data, offset)
        end = offset + HEADER.size + length
        body = data[offset + HEADER.size : end]
        if not length or end > len(data) or zlib.crc32(body) != crc:
            return
        of, path, at, content = msgpack.unpackb(body, unicode_errors="surrogateescape")
        if of != generation:
            return
        yield Span(path, at, content), end
        offset = end
