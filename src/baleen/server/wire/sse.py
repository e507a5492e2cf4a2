"""Server-sent events to one client: written at once, kept alive in silence.

Events go straight to the connection, chunk by chunk, without a task switch: there is one write for
what one read of the upstream has brought.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from json.encoder import encode_basestring as quote
from time import monotonic
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from aiohttp import HttpVersion11, web

from baleen.server.room import Room
from baleen.server.wire.connection import Connection

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

__all__ = ["EventStream", "KeepAlive", "quote"]

HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class EventStream:
    """One response made of events."""

    def __init__(
        self, headers: Mapping[str, str], keep_alive: KeepAlive, silence: str = ": .\n\n"
    ) -> None:
        self._response = web.StreamResponse(headers={**HEADERS, **headers})
        self._keep_alive, self._silence = keep_alive, silence
        self.room = Room()
        """Full while the client reads so slowly that writing should wait."""
        self._transport: asyncio.Transport
        self._is_chunked = True
        self.last_write = monotonic()

    async def open(self, request: BaseRequest) -> web.StreamResponse:
        """Send the headers."""
        assert isinstance(request.protocol, Connection), "the server makes its connections so"
        if request.transport is None:
            raise ConnectionResetError("the client has left")
        self.room, self._transport = request.protocol.room, request.transport
        self._is_chunked = request.version >= HttpVersion11
        if self._is_chunked:
            self._response.enable_chunked_encoding()
        await self._response.prepare(request)
        self._keep_alive.streams.add(self)
        return self._response

    def write(self, text: str) -> None:
        """Send whole events; look at :attr:`room` between them."""
        self.last_write = monotonic()
        data = text.encode("utf-8", "replace")
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not self._transport.is_closing():
            self._transport.write(data)

    async def close(self) -> None:
        """End the response."""
        self._keep_alive.streams.discard(self)
        await self._response.write_eof()

    def discard(self) -> None:
        """The client is gone."""
        self._keep_alive.streams.discard(self)

    async def keep_alive(self, silence_s: float) -> None:
        """Say something that means nothing, if nothing has been said for so long."""
        if monotonic() - self.last_write >= silence_s and not self.room.is_full:
            self.write(self._silence)


class WholeResponse:
    """One JSON object, kept alive until it is there.

    A client or a proxy between gives up a connection on which nothing happens. Once nothing has
    happened for a while, the response therefore begins, with line ends, which JSON may begin with.
    What goes wrong behind that point can no longer be told by a status: the object is the error.
    """

    def __init__(
        self, request: BaseRequest, headers: Mapping[str, str], keep_alive: KeepAlive
    ) -> None:
        self._request, self._headers = request, dict(headers)
        self._keep_alive = keep_alive
        self._last_write = monotonic()
        self._response: web.StreamResponse | None = None
        self._lock = asyncio.Lock()
        keep_alive.streams.add(self)

    @property
    def has_begun(self) -> bool:
        """Whether status and headers are out."""
        return self._response is not None

    async def keep_alive(self, silence_s: float) -> None:
        """Send a line end, if nothing has been sent for so long."""
        if monotonic() - self._last_write < silence_s:
            return
        async with self._lock:
            self._last_write = monotonic()
            with suppress(ConnectionError):
                if self._response is None:
                    self._response = web.StreamResponse(headers=self._headers)
                    self._response.content_type = "application/json"
                    await self._response.prepare(self._request)
                await self._response.write(b"\n")

    async def finish(self, text: str) -> web.StreamResponse:
        """Send the object."""
        self.discard()
        async with self._lock:
            if self._response is None:
                # Half a surrogate pair may come from a client, and no text goes out with it.
                return web.Response(
                    body=text.encode("utf-8", "replace"),
                    content_type="application/json",
                    charset="utf-8",
                    headers=self._headers,
                )
            await self._response.write(text.encode("utf-8", "replace"))
            await self._response.write_eof()
            return self._response

    def discard(self) -> None:
        """Nothing more is to be sent to keep it alive."""
        self._keep_alive.streams.discard(self)


class KeepAlive:
    """One task that looks after all streams."""

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self.streams: WeakSet[EventStream | WholeResponse] = WeakSet()

    async def run(self) -> None:
        """Look at every stream, several times per period; runs until cancelled."""
        while True:
            await asyncio.sleep(self.silence_s / 4)
            for stream in list(self.streams):
                await stream.keep_alive(self.silence_s)
