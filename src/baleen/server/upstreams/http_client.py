"""HTTP to an engine: JSON out, server-sent JSON in, failures by what they mean.

Events are handed out in the batches in which they arrived: a busy engine's tokens then cost one
wake-up for many.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import aiohttp

from baleen.server.errors import UpstreamError, UpstreamRefusalError, UpstreamStallError

_CONNECT_TIMEOUT_S: Final = 10.0
_ASK_TIMEOUT_S: Final = 10.0
_MAX_EVENT_BYTES: Final = 64 << 20
_DONE: Final = b"[DONE]"


class EngineClient:
    """Requests to one engine; connections are kept and reused."""

    def __init__(
        self, base_url: str, *, api_key: str | None = None, stall_timeout_s: float = 300.0
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._stall_timeout_s = stall_timeout_s
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=_CONNECT_TIMEOUT_S, sock_read=self._stall_timeout_s
                ),
                read_bufsize=1 << 18,
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str) -> Any:
        """What a path holds, as JSON; None if there is no such path.

        Raises:
            UpstreamError: the engine cannot be reached or answers nonsense.
        """
        timeout = aiohttp.ClientTimeout(total=_ASK_TIMEOUT_S)
        try:
            async with self._open().get(self.base_url + path, timeout=timeout) as response:
                if response.status != 200:
                    return None
                return json.loads(await response.read())
        except ValueError:
            return None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    async def whole(self, path: str, body: Mapping[str, Any]) -> Any:
        """The one JSON answer to a request.

        Raises:
            UpstreamError: the engine cannot be reached, refuses, or breaks off.
        """
        try:
            async with await self._post(path, body) as response:
                await self._check(response)
                return json.loads(await response.read())
        except aiohttp.SocketTimeoutError as error:
            raise self._silent() from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._unreachable(error) from error

    async def events(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The JSON events of a streamed answer, in the batches in which they come.

        Raises:
            UpstreamError: the engine cannot be reached, refuses, or breaks off.
            UpstreamStallError: it sends nothing for too long.
        """
        try:
            async with await self._post(path, body) as response:
                await self._check(response)
                held = b""
                async for data in response.content.iter_any():
                    held += data
                    *whole, held = held.replace(b"\r\n", b"\n").split(b"\n\n")
                    if len(held) > _MAX_EVENT_BYTES:
                        raise UpstreamError(f"{self.base_url} sent an event without end")
                    if events := [event for text in whole if (event := _event(text)) is not None]:
                        yield events
                if (event := _event(held)) is not None:
                    yield [event]
        except aiohttp.SocketTimeoutError as error:
            raise self._silent() from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._unreachable(error) from error

    async def _post(self, path: str, body: Mapping[str, Any]) -> aiohttp.ClientResponse:
        """Send a request; once more if an idle connection turned out to be closed."""
        data = json.dumps(body, separators=(",", ":")).encode()
        headers = {"content-type": "application/json"}
        for is_last in (False, True):
            try:
                return await self._open().post(self.base_url + path, data=data, headers=headers)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if is_last or isinstance(error, aiohttp.ClientConnectorError):
                    raise
        raise AssertionError("the last try returns or raises")

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 200:
            return
        text = (await response.text())[:500]
        failure = UpstreamRefusalError if 400 <= response.status < 500 else UpstreamError
        if response.status in (408, 429):
            failure = UpstreamError
        raise failure(f"{self.base_url} answered {response.status}: {text or '(no text)'}")

    def _unreachable(self, error: Exception) -> UpstreamError:
        reason = str(error) or type(error).__name__
        return UpstreamError(
            f"{self.base_url} cannot be reached or broke off: {reason}",
            remedy="is the engine running?",
        )

    def _silent(self) -> UpstreamStallError:
        return UpstreamStallError(
            f"{self.base_url} has sent nothing for {self._stall_timeout_s:g} s",
            remedy="look at its log; --stall-timeout sets the patience",
        )


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
    event = json.loads(data)
    if not isinstance(event, dict):
        return None
    if event.get("error"):
        raise UpstreamError(f"the engine failed: {json.dumps(event['error'])[:500]}")
    return event
