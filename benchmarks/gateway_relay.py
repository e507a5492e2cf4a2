"""The least that can stand between a client and an engine: bytes from one socket to the other.

`python benchmarks/gateway_relay.py ENGINE_PORT` prints its port. What it costs is what sockets and
event loop of this machine cost; what the gateway costs beyond it is the gateway.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any


class Back(asyncio.Protocol):
    """The engine's side."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._client.close()


class Front(asyncio.Protocol):
    """The client's side; a request comes in one piece."""

    def __init__(self, engine_port: int) -> None:
        self._port = engine_port
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._tasks.add(asyncio.ensure_future(self._pass_on(data)))

    async def _pass_on(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        back, _ = await loop.create_connection(
            lambda: Back(self._transport), "127.0.0.1", self._port
        )
        back.write(data)


async def main(engine_port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Front(engine_port), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
