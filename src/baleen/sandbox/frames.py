"""Frames on every socket here: u32 length, u32 CRC-32 (little-endian), MessagePack.

The checksum costs nothing noticeable and is what lets the same frames cross a serial line into a
VM.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgpack

from .errors import EdgeError

Message = dict[str, Any]

HEADER = struct.Struct("<II")
MAX_FRAME_BYTES = 64 << 20
HIGH_WATER_BYTES = 4 << 20


def pack(message: Message) -> bytes:
    """Encodes one message as a frame."""
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > MAX_FRAME_BYTES:
        raise EdgeError(
            f"message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}",
            remedy="send large data through box.files",
        )
    return HEADER.pack(len(body), zlib.crc32(body)) + body


class FrameBuffer:
    """Cuts a byte stream into messages; raises EdgeError where the bytes cannot be frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._wanted = HEADER.size

    def feed(self, data: bytes) -> list[Message]:
        """Adds received bytes and returns the messages that are now whole."""
        if self._bytes:
            self._bytes += data
            if len(self._bytes) < self._wanted:
                return []  # a long frame in many pieces is put together once
            data = bytes(self._bytes)
            self._bytes.clear()
        messages = []
        start = 0
        while len(data) - start >= HEADER.size:
            length, crc = HEADER.unpack_from(data, start)
            if length > MAX_FRAME_BYTES:
                raise EdgeError(f"frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = start + HEADER.size + length
            if len(data) < end:
                self._wanted = end - start
                break
            messages.append(_decode(data[start + HEADER.size : end], crc))
            start = end
        else:
            self._wanted = HEADER.size
        if start < len(data):
            self._bytes += data[start:]
        return messages


def _decode(body: bytes, crc: int) -> Message:
    if zlib.crc32(body) != crc:
        raise EdgeError("frame checksum is wrong")
    try:
        message = msgpack.unpackb(
            body, raw=False, strict_map_key=False, unicode_errors="surrogateescape"
        )
    except Exception as error:
        raise EdgeError("frame is not MessagePack") from error
    if not isinstance(message, dict):
        raise EdgeError("frame is not a map")
    return message


class Link(asyncio.Protocol):
    """One framed connection: calls back per message and once at its end, whoever ended it."""

    def __init__(
        self, on_message: Callable[[Message], None], on_close: Callable[[], None] | None = None
    ) -> None:
        self._on_message = on_message
        self._on_close = on_close
        self._buffer = FrameBuffer()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._buffer.feed(data):
                self._on_message(message)
        except EdgeError:
            self.close()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._writable.set()
        if self._on_close is not None:
            self._on_close()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, *messages: Message) -> None:
        """Queues messages, at once; a closed link drops them, its owner hears from ``on_close``."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(map(pack, messages)))

    async def drained(self) -> None:
        """Waits until the other side has taken enough for more to be worth queueing."""
        await self._writable.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
