"""Ports of a box on the host's loopback, each connection relayed through process 1 of the box."""

from __future__ import annotations

import asyncio
import contextlib

from baleen.errors import SandboxError

from .agentlink import AgentLink

CHUNK_BYTES = 64 << 10


class PortForward:
    """One listening port on 127.0.0.1 that leads to one port of a box."""

    def __init__(self, link: AgentLink, port: int) -> None:
        self._link = link
        self._port = port
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listens and returns the host's port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    def stop(self) -> None:
        """Stops listening and cuts every connection."""
        if self._server is not None:
            self._server.close()
        for relay in self._relays:
            relay.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)
        with contextlib.suppress(SandboxError, ConnectionError, asyncio.CancelledError):
            await self._relay(reader, writer)
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        op, ended = await self._link.connect_port(self._port, lambda _, data: writer.write(data))
        sending = asyncio.create_task(self._send(op, reader))
        try:
            await ended
            await writer.drain()
        finally:
            sending.cancel()
            self._link.disconnect(op)
            self._link.acknowledge(op)

    async def _send(self, op: int, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK_BYTES):
            self._link.send_input(op, data, eof=False)
            await self._link.drained()
        self._link.send_input(op, b"", eof=True)
