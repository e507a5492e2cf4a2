"""How much memory the host has left: what decides whether it can bear another box."""

from __future__ import annotations

import os
import time

from .errors import CapacityError, UnsupportedError

SEEN_FOR_S = 0.1
"""How long a look counts: the kernel adds the number up for every look."""

LEAST_MB = 256


class FreeMemory:
    """The host's available memory, looked at again now and then."""

    def __init__(self) -> None:
        self._meminfo = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
        self._mb, self._seen_at = 0, -SEEN_FOR_S

    @property
    def mb(self) -> int:
        now = time.monotonic()
        if now - self._seen_at > SEEN_FOR_S:
            self._mb, self._seen_at = self._look(), now
        return self._mb

    def _look(self) -> int:
        for line in os.pread(self._meminfo, 4096, 0).splitlines():
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) // 1024
        raise UnsupportedError("/proc/meminfo has no MemAvailable")

    def check(self, memory_mb: int) -> None:
        """Refuses a box that may take so much.

        Raises:
            CapacityError: too little is left.
        """
        if (left_mb := self.mb) < max(LEAST_MB, memory_mb / 4):
            raise CapacityError(
                f"{left_mb} MB of memory are left, too few for a box of {memory_mb} MB",
                remedy="close boxes or ask for a smaller memory_mb",
            )
