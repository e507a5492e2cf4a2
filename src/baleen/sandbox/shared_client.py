"""The connection to the edge that all boxes of an event loop share; it closes with the last."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from .client import EdgeClient

_Clients = WeakKeyDictionary[asyncio.AbstractEventLoop, EdgeClient]


class SharedClient:
    """Who has acquired the client of the running event loop releases it again."""

    _clients: ClassVar[_Clients] = WeakKeyDictionary()
    _users: ClassVar[WeakKeyDictionary[EdgeClient, int]] = WeakKeyDictionary()

    @classmethod
    def acquire(cls) -> EdgeClient:
        loop = asyncio.get_running_loop()
        client = cls._clients.get(loop)
        if client is None:
            client = cls._clients[loop] = EdgeClient()
        cls._users[client] = cls._users.get(client, 0) + 1
        return client

    @classmethod
    async def release(cls, client: EdgeClient) -> None:
        cls._users[client] -= 1
        if cls._users[client] == 0:
            cls._clients.pop(asyncio.get_running_loop(), None)
            await client.close()

    @classmethod
    async def ask(cls, do: str, **arguments: Any) -> Any:
        """Asks what concerns no single box."""
        client = cls.acquire()
        try:
            return await client.ask(do, **arguments)
        finally:
            await cls.release(client)
