"""Server-sent events to one client: written at once, kept alive in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from json.encoder import encode_basestring as quote
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from aiohttp import web

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
        self, headers: Mapping[str, str], keep_alive: KeepAlive, silence: bytes = b": .\n\n"
    ) -> None:
        self._response = web.StreamResponse(headers={**HEADERS, **headers})
        self._keep_alive, self._silence = keep_alive, silence
        self._now = asyncio.get_running_loop().time
        self.last_write = self._now()

    async def open(self, request: BaseRequest) -> web.StreamResponse:
        """Send the headers."""
        await self._response.prepare(request)
        self._keep_alive.streams.add(self)
        return self._response

    async def write(self, text: str) -> None:
        """Send whole events; waits while the client reads too slowly."""
        self.last_write = self._now()
        await self._response.write(text.encode("utf-8", "replace"))

    async def close(self) -> None:
        """End the response."""
        self._keep_alive.streams.discard(self)
        await self._response.write_eof()

    def discard(self) -> None:
        """The client is gone."""
        self._keep_alive.streams.discard(self)

    def is_silent(self, silence_s: float) -> bool:
        """Whether nothing has been said for so long."""
        return self._now() - self.last_write >= silence_s

    async def keep_alive(self) -> None:
        """Say something that means nothing; a client that does not read is not waited for."""
        self.last_write = self._now()
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(0.1):
                await self._response.write(self._silence)


class KeepAlive:
    """One task that looks after all streams."""

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self.streams: WeakSet[EventStream] = WeakSet()

    async def run(self) -> None:
        """Look at every stream, several times per period; runs until cancelled."""
        while True:
            await asyncio.sleep(self.silence_s / 4)
            silent = [stream for stream in self.streams if stream.is_silent(self.silence_s)]
            await asyncio.gather(*(stream.keep_alive() for stream in silent))
