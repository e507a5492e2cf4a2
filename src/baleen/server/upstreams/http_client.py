"""HTTP to an engine: JSON out, server-sent JSON in, failures by what they mean.

Events are handed out in the batches in which they arrived, and at once: see `http_connection.py`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from baleen.errors import ConfigError
from baleen.server.base import Taker
from baleen.server.errors import UpstreamError, UpstreamRefusalError, UpstreamStallError
from baleen.server.upstreams.http_connection import Head, HttpConnection

TakeEvents = Callable[[list[dict[str, Any]]], bool]
"""Is given the events that arrived together; False: enough."""

_CONNECT_TIMEOUT_S: Final = 10.0
_ASK_TIMEOUT_S: Final = 10.0
_MAX_EVENT_BYTES: Final = 64 << 20
_MAX_IDLE: Final = 64
_READ_BYTES: Final = 1 << 18
_DONE: Final = b"[DONE]"


class EngineClient:
    """Requests to one engine; connections are kept and reused."""

    def __init__(
        self, base_url: str, *, api_key: str | None = None, stall_timeout_s: float = 300.0
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"{base_url!r} is no address of an engine",
                remedy="write it as http://HOST:PORT or https://HOST",
            )
        self._host, self._path = parts.hostname, parts.path
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._common = f"host: {parts.netloc.rpartition('@')[2]}\r\naccept: */*\r\n{key}"
        self._stall_timeout_s = stall_timeout_s
        self._idle: list[HttpConnection] = []
        self._buffer = memoryview(bytearray(_READ_BYTES))

    async def close(self) -> None:
        """Close the connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    async def get(self, path: str) -> Any:
        """What a path holds, as JSON; None if there is no such path.

        Raises:
            UpstreamError: the engine cannot be reached or answers nonsense.
        """
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S), self._exchange("GET", path) as answer:
                body = await _whole(answer.connection)
            return json.loads(body) if answer.head.status == 200 else None
        except ValueError:
            return None
        except TimeoutError as error:
            raise self._unreachable(error) from error

    async def whole(self, path: str, body: Mapping[str, Any]) -> Any:
        """The one JSON answer to a request.

        Raises:
            UpstreamError: the engine cannot be reached, refuses, or breaks off.
            UpstreamStallError: it sends nothing for too long.
        """
        async with self._exchange("POST", path, body) as answer:
            data = await _whole(answer.connection)
        self._check(answer.head, data)
        try:
            return json.loads(data)
        except ValueError as error:
            raise self._unreachable(error) from error

    async def events(
        self, path: str, body: Mapping[str, Any], take: TakeEvents, taker: Taker
    ) -> None:
        """Hand out the JSON events of a streamed answer, as fast as the taker takes them.

        Raises:
            UpstreamError: the engine cannot be reached, refuses, or breaks off.
            UpstreamStallError: it sends nothing for too long.
        """
        async with self._exchange("POST", path, body) as answer:
            if answer.head.status != 200:
                self._check(answer.head, await _whole(answer.connection))
            reader = _EventReader(answer, take, taker, self.base_url)
            await answer.connection.read(reader.feed)
            reader.finish()

    def _check(self, head: Head, data: bytes) -> None:
        if head.status == 200:
            return
        text = data.decode("utf-8", "replace")[:500]
        failure = UpstreamRefusalError if 400 <= head.status < 500 else UpstreamError
        if head.status in (408, 429):
            failure = UpstreamError
        raise failure(f"{self.base_url} answered {head.status}: {text or '(no text)'}")

    # --- connections ---------------------------------------------------------------------------

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[_Exchange]:
        """A request and its response; the connection is kept if it can be, else closed."""
        data = self._request(method, path, body)
        exchange: _Exchange | None = None
        try:
            exchange = await self._begin(data)
            yield exchange
        except UpstreamStallError:
            raise  # which is an OSError too
        except OSError as error:
            raise self._unreachable(error) from error
        finally:
            if exchange is not None:
                exchange.end()
                if exchange.connection.is_idle and len(self._idle) < _MAX_IDLE:
                    self._idle.append(exchange.connection)
                else:
                    exchange.connection.close()

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._common}"
        if body is None:
            return f"{head}\r\n".encode("latin-1")
        try:
            data = orjson.dumps(body)
        except TypeError:  # numbers beyond 64 bits, half a surrogate pair
            data = json.dumps(body).encode()
        head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        return head.encode("latin-1") + data

    async def _begin(self, data: bytes) -> _Exchange:
        """Send a request; on a new connection if an idle one turns out to be closed."""
        while self._idle:
            kept = self._idle.pop()
            if kept.is_idle:
                try:
                    return await self._send(kept, data)
                except ConnectionError:
                    continue
        return await self._send(await self._connect(), data)

    async def _send(self, connection: HttpConnection, data: bytes) -> _Exchange:
        exchange = _Exchange(connection, self._stall_timeout_s, self._silent())
        try:
            await exchange.open(data)
        except BaseException:
            exchange.end()
            connection.close()
            raise
        return exchange

    async def _connect(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: HttpConnection(self._buffer), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise TimeoutError(f"no connection within {_CONNECT_TIMEOUT_S:g} s") from None
        return connection

    def _unreachable(self, error: Exception) -> UpstreamError:
        reason = str(error) or type(error).__name__
        remedy = "is the engine running?"
        if isinstance(error, ssl.SSLCertVerificationError):
            remedy = "SSL_CERT_FILE names a file with the authorities to trust"
        elif isinstance(error, ssl.SSLError):
            remedy = "does it speak TLS, or is it http:// there?"
        return UpstreamError(
            f"{self.base_url} cannot be reached or broke off: {reason}", remedy=remedy
        )

    def _silent(self) -> UpstreamStallError:
        return UpstreamStallError(
            f"{self.base_url} has sent nothing for {self._stall_timeout_s:g} s",
            remedy="look at its log; --stall-timeout sets the patience",
        )


class _Exchange:
    """One request and its response, watched for silence and held up while the taker is full."""

    def __init__(
        self, connection: HttpConnection, stall_timeout_s: float, silent: UpstreamStallError
    ) -> None:
        self.connection, self.head = connection, Head(b"HTTP/1.1 000 none")
        self._loop = asyncio.get_running_loop()
        self._timeout_s, self._silent = stall_timeout_s, silent
        self._timer = self._loop.call_later(stall_timeout_s, self._look)
        self._waiting: asyncio.Task[None] | None = None

    async def open(self, data: bytes) -> None:
        """Send; returns when there are headers."""
        self.head = await self.connection.request(data)

    def hold(self, taker: Taker) -> None:
        """Take nothing more from the engine until the taker has room."""
        if self._waiting is None:
            self.connection.pause()
            self._waiting = self._loop.create_task(self._go_on(taker))

    async def _go_on(self, taker: Taker) -> None:
        try:
            await taker.room.cleared()
        finally:
            self._waiting = None
            self.connection.last_data_at = monotonic()
            self.connection.resume()

    def _look(self) -> None:
        """Has it fallen silent? One timer for an exchange, however many tokens it has."""
        silence_s = monotonic() - self.connection.last_data_at
        if silence_s >= self._timeout_s and self._waiting is None:
            self.connection.fail(self._silent)
            return
        left_s = max(0.05, self._timeout_s - silence_s)
        self._timer = self._loop.call_later(left_s, self._look)

    def end(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._waiting is not None:
            self._waiting.cancel()


class _EventReader:
    """Cuts a body into events."""

    def __init__(self, exchange: _Exchange, take: TakeEvents, taker: Taker, url: str) -> None:
        self._exchange, self._take, self._taker, self._url = exchange, take, taker, url
        self._held = b""

    def feed(self, data: bytes) -> bool:
        """More of the body."""
        if self._held:
            data = self._held + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        if data.endswith(b"\n\n"):
            self._held = b""
        else:
            data, _, self._held = data.rpartition(b"\n\n")
            if len(self._held) > _MAX_EVENT_BYTES:
                raise UpstreamError(f"{self._url} sent an event without end")
        if data.find(b"\n\n") == len(data) - 2:  # one event, as from an engine that does not lag
            event = _event(data)
            goes_on = event is None or self._take([event])
        else:
            goes_on = self._hand_out(data)
        if self._taker.room.is_full:
            self._exchange.hold(self._taker)
        return goes_on

    def finish(self) -> None:
        """The body is over; an event may have come without its end."""
        held, self._held = self._held, b""
        self._hand_out(held)

    def _hand_out(self, data: bytes) -> bool:
        events = [event for text in data.split(b"\n\n") if (event := _event(text)) is not None]
        return self._take(events) if events else True


async def _whole(connection: HttpConnection) -> bytes:
    parts: list[bytes] = []

    def take(data: bytes) -> bool:
        parts.append(data)
        return True

    await connection.read(take)
    return b"".join(parts)


def _lax_json(data: bytes) -> Any:
    """JSON with NaN or half a surrogate pair in it, which is none but what engines send."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise UpstreamError(f"the engine sent no JSON: {data[:200]!r}") from error


def _event(text: bytes) -> dict[str, Any] | None:
    """The object of one event; None for comments and the end.

    Raises:
        UpstreamError: the engine reports an error within the stream.
    """
    if not text.startswith(b"data:"):
        if text.startswith(b"error:"):
            raise UpstreamError(f"the engine failed: {text[6:300].decode(errors='replace')}")
        return None
    data = text[5:].strip()
    if data == _DONE:
        return None
    try:
        event = orjson.loads(data)
    except ValueError:
        event = _lax_json(data)
    if not isinstance(event, dict):
        return None
    if event.get("error"):
        raise UpstreamError(f"the engine failed: {json.dumps(event['error'])[:500]}")
    return event
