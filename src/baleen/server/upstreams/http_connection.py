"""One HTTP/1.1 connection to an engine, one exchange at a time.

What arrives is handed on from within the event loop's read, without a task in between: waking one
for every token costs more than everything else that is done with the token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from baleen.server.upstreams.http_body import BodyReader

Take = Callable[[bytes], bool]
"""Is given more of a body; False: enough, the rest is not wanted."""

_MAX_HEAD_BYTES: Final = 1 << 16


class Head:
    """Status and headers of a response."""

    __slots__ = ("headers", "is_http_11", "status")

    def __init__(self, data: bytes) -> None:
        first, *lines = data.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        number = rest[:3]
        if not version.startswith("HTTP/1.") or not number.isdigit():
            raise ConnectionError(f"no HTTP response: {first[:80]!r}")
        self.is_http_11, self.status = version != "HTTP/1.0", int(number)
        self.headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }

    @property
    def keeps_open(self) -> bool:
        """Whether the connection can serve another exchange."""
        wish = self.headers.get("connection", "").lower()
        return wish != "close" if self.is_http_11 else wish == "keep-alive"


class HttpConnection(asyncio.BufferedProtocol):
    """Sends requests and hands on what comes back; :meth:`close` it when something went wrong.

    ``buffer`` receives what arrives and may be shared by all connections of one event loop. Without
    one, each read would map and unmap 256 KiB, which costs as much as the rest of it.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._held = b""
        self._head: asyncio.Future[Head] | None = None
        self._body: BodyReader | None = None
        self._take: Take | None = None
        self._early: list[bytes] = []
        self._end: asyncio.Future[None] | None = None
        self._keeps_open = self._can_be_reused = False
        self.last_data_at = 0.0

    # --- what a client does --------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether it is open and has nothing left of the exchange before."""
        return self._can_be_reused and not self._transport.is_closing()

    async def request(self, data: bytes) -> Head:
        """Send a request; returns when the headers of its response are here.

        Raises:
            ConnectionError: the connection broke off, or this is no HTTP.
        """
        self._head, self._end = self._loop.create_future(), self._loop.create_future()
        self._body, self._take, self._can_be_reused = None, None, False
        self._early = []
        self.last_data_at = monotonic()
        self._transport.write(data)
        return await self._head

    async def read(self, take: Take) -> None:
        """Hand on the body as it comes, until it ends or `take` has enough.

        Raises:
            ConnectionError: the connection broke off. And whatever `take` raises.
        """
        assert self._end is not None, "a request has been sent"
        early, self._early = self._early, []
        self._take = take
        for data in early:
            if not take(data):
                return
        await self._end

    def pause(self) -> None:
        """Take nothing more from the engine for now."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def fail(self, error: Exception) -> None:
        """End the exchange with an error."""
        for waiter in (self._head, self._end):
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # it may be that nobody waits for the other one

    def close(self) -> None:
        """Break the connection; an engine stops computing for it."""
        self._can_be_reused = False
        self._transport.abort()

    # --- what the event loop does --------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Connected."""
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next read goes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """More of a response."""
        self.last_data_at = monotonic()
        data = bytes(self._buffer[:nbytes])
        try:
            body = self._body
            if body is None:
                data = self._read_head(data)
                body = self._body
                if body is None:
                    return
            payload = body.feed(data)
            if payload:
                take, end = self._take, self._end
                if take is None:
                    self._early.append(payload)
                elif end is not None and not end.done() and not take(payload):
                    end.set_result(None)
            if body.is_over:
                self._finish(body)
        except Exception as error:  # whatever it is, it belongs to whoever waits
            self.fail(error)
            self.close()

    def _read_head(self, data: bytes) -> bytes:
        """Read headers; returns what of the body came with them."""
        if self._head is None or self._head.done():
            raise ConnectionError("the engine speaks without being asked")
        self._held += data
        head, found, rest = self._held.partition(b"\r\n\r\n")
        if not found:
            if len(self._held) > _MAX_HEAD_BYTES:
                raise ConnectionError("headers without end")
            return b""
        self._held = b""
        read = Head(head)
        if read.status < 200:  # 100 Continue and its like come before the response itself
            return self._read_head(rest)
        self._body = BodyReader(read.status, read.headers)
        self._keeps_open = read.keeps_open
        self._head.set_result(read)
        return rest

    def _finish(self, body: BodyReader) -> None:
        self._can_be_reused = self._keeps_open and not body.has_surplus
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine has hung up; some bodies end that way."""
        self._can_be_reused = False
        if self._body is not None and self._body.ends_with_connection and exc is None:
            self._finish(self._body)
            self._can_be_reused = False
        else:
            self.fail(exc if isinstance(exc, ConnectionError) else ConnectionResetError("hung up"))
