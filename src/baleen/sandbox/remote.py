"""Reaching an edge on another machine: ``BALEEN_SANDBOX_URL`` and ``BALEEN_SANDBOX_TOKEN``."""

from __future__ import annotations

import asyncio
import os
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import EdgeError
from .frames import Link

UPGRADE = "baleen-frames"
CONNECT_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Remote:
    """Where an edge of another machine listens."""

    host: str
    port: int
    token: str
    is_tls: bool

    @classmethod
    def from_environment(cls) -> Remote | None:
        """The remote edge that the environment names, if it names one.

        Raises:
            EdgeError: the URL is none.
        """
        url = os.environ.get("BALEEN_SANDBOX_URL")
        if not url:
            return None
        try:
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") and parts.hostname:
                is_tls = parts.scheme == "https"
                port = parts.port or (443 if is_tls else 80)
                token = os.environ.get("BALEEN_SANDBOX_TOKEN", "")
                return cls(parts.hostname, port, token, is_tls)
        except ValueError:
            pass
        raise EdgeError(f"BALEEN_SANDBOX_URL={url!r} is not http(s)://host:port")

    async def connect(self, link: Link) -> None:
        """Connects ``link`` to the edge.

        Raises:
            EdgeError: the edge does not answer or refuses the token.
        """
        where = f"{self.host}:{self.port}"
        tls = ssl.create_default_context() if self.is_tls else None
        loop = asyncio.get_running_loop()
        knock = _Knock(link)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                transport, _ = await loop.create_connection(
                    lambda: knock, self.host, self.port, ssl=tls
                )
                lines = (
                    "GET /v1/frames HTTP/1.1",
                    f"Host: {where}",
                    f"Authorization: Bearer {self.token}",
                    f"Upgrade: {UPGRADE}",
                    "Connection: Upgrade",
                )
                transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())
                answer = await knock.answer
        except (OSError, TimeoutError) as error:
            raise EdgeError(
                f"no edge answers at {where}: {error}", remedy="check BALEEN_SANDBOX_URL"
            ) from error
        if " 101 " not in answer:
            transport.close()
            setting = "BALEEN_SANDBOX_TOKEN" if " 401 " in answer else "BALEEN_SANDBOX_URL"
            raise EdgeError(f"the edge at {where} refuses: {answer}", remedy=f"check {setting}")


class _Knock(asyncio.Protocol):
    """The connection until the edge has let it in; then it is the link's."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._data = b""
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found or self.answer.done():
            return
        answer = head.split(b"\r\n")[0].decode("latin-1")
        if " 101 " in answer:
            self._transport.set_protocol(self._link)
            self._link.connection_made(self._transport)
            if rest:
                self._link.data_received(rest)
        self.answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionResetError("it hung up"))
