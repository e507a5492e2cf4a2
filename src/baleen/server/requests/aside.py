"""Long texts are cut into tokens beside the event loop, so that no stream waits for them.

The tokenizer lets other threads run while it works: a million characters take it about a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_LONG_CHARS: Final = 20_000
"""Some 20 ms of work; a thread costs a tenth of a millisecond."""


async def aside(num_chars: int, work: Callable[[], T]) -> T:
    """What `work` returns, which deals with as many characters; in a thread if they are many."""
    return work() if num_chars < _LONG_CHARS else await asyncio.to_thread(work)
