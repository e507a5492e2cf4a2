"""Whether whoever is given something has room for more of it."""

from __future__ import annotations

import asyncio


class Room:
    """It is looked at for every token, so it is an attribute and not a chain of questions."""

    __slots__ = ("_opened", "is_full")

    def __init__(self) -> None:
        self.is_full = False
        """Whether :meth:`cleared` is to be awaited before more is handed over."""
        self._opened = asyncio.Event()

    def fill(self) -> None:
        """There is no room for now."""
        self.is_full = True
        self._opened.clear()

    def clear(self) -> None:
        """There is room again."""
        self.is_full = False
        self._opened.set()

    async def cleared(self) -> None:
        """Wait until there is room."""
        if self.is_full:
            await self._opened.wait()
