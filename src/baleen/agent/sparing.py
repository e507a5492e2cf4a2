"""Doing something often, but never so often that it costs much."""

from __future__ import annotations

import time
from collections.abc import Callable

_SHARE = 0.05
"""At most this part of the time goes into the action."""


class Sparing:
    """Calls an action, unless its last call was too recent for what that one cost.

    The trajectory of a long run is megabytes that are written anew after every step; the log is
    the truth meanwhile, and whoever holds this calls the action itself at the end.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._next_at = 0.0

    def __call__(self) -> None:
        started = time.monotonic()
        if started < self._next_at:
            return
        self._action()
        ended = time.monotonic()
        self._next_at = ended + (ended - started) * (1 - _SHARE) / _SHARE
