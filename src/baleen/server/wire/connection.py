"""One client's connection: bounded in number, impatient, and known to be slow when it is."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from baleen.server.room import Room

_LINGER_S: Final = 1.0
"""What a refused body may go on sending, so that its sender comes to read the refusal."""
_IDLE_S: Final = 75.0
_TOO_MANY: Final = json.dumps(
    {
        "error": {
            "message": "too many connections",
            "type": "rate_limit_error",
            "param": None,
            "code": "overloaded",
        }
    }
)


class Connector(web.Server):
    """Makes a connection's protocol: bounded in number, impatient with slow headers."""

    def __init__(self, handler: Any, *, limit: int, patience_s: float) -> None:
        super().__init__(handler, handler_cancellation=True, access_log=None)
        self._limit, self._patience_s = limit, patience_s

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            self._limit,
            self._patience_s,
            loop=self._loop,
            access_log=None,
            lingering_time=_LINGER_S,
            keepalive_timeout=_IDLE_S,
        )


class Connection(RequestHandler):
    """One connection; it has to ask for something in time, or it is closed."""

    __slots__ = ("_limit", "_patience", "_patience_s", "room")

    def __init__(self, server: Connector, limit: int, patience_s: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._limit, self._patience_s = limit, patience_s
        self._patience: asyncio.TimerHandle | None = None
        self.room = Room()
        """Full while the client reads too slowly."""

    def connection_made(self, transport: Any) -> None:
        """A client has come; one too many is sent away at once."""
        super().connection_made(transport)
        if self._manager is not None and len(self._manager.connections) > self._limit:
            transport.write(
                b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n"
                b"retry-after: 1\r\nconnection: close\r\ncontent-length: "
                + f"{len(_TOO_MANY)}\r\n\r\n{_TOO_MANY}".encode()
            )
            transport.close()
            return
        self._patience = self._loop.call_later(self._patience_s, self._give_up)

    def _give_up(self) -> None:
        """No request has begun on this connection."""
        if self._current_request is None and self._request_count == 0 and self.transport:
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone."""
        if self._patience is not None:
            self._patience.cancel()
        self.room.clear()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.room.fill()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has read enough to go on."""
        self.room.clear()
        super().resume_writing()
