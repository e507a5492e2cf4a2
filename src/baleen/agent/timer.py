"""How long a turn takes, and how long until its first token."""

from __future__ import annotations

import time


class Timer:
    """Begins when it is made; on the monotonic clock."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.first_s = 0.0
        """Seconds until `first` was called for the first time."""

    def first(self) -> None:
        """Something has arrived."""
        if self.first_s == 0.0:
            self.first_s = self.elapsed_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started
