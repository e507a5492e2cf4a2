"""Reasoning that repeats itself: found by its period, at a constant cost per token.

Where the last few tokens have stood before, their distance is a period. If the same distance holds
token after token, for several periods and many tokens, the text is going round in circles. Lists,
tables and code repeat shapes but not the tokens between them, so the distance changes.
"""

from __future__ import annotations

from typing import Final

_GRAM: Final = 8
"""Tokens that have to recur; fewer would find common phrases."""
_BASE: Final = 1_000_003
_MODULUS: Final = (1 << 61) - 1
_TOP: Final = pow(_BASE, _GRAM, _MODULUS)


class LoopDetector:
    """Watches one reasoning; feed it every token."""

    __slots__ = ("_hash", "_last", "_min_periods", "_min_tokens", "_period", "_run", "_window")

    def __init__(self, min_tokens: int = 512, min_periods: int = 4) -> None:
        self._min_tokens, self._min_periods = min_tokens, min_periods
        self._window: list[int] = []
        self._hash = 0
        self._last: dict[int, int] = {}
        self._period = 0
        self._run = 0

    def feed(self, number: int) -> bool:
        """One more token; True if the text has been circling for long."""
        window = self._window
        window.append(number)
        length = len(window)
        rolled = self._hash * _BASE + number + 1
        if length > _GRAM:
            rolled -= (window[length - _GRAM - 1] + 1) * _TOP
        self._hash = rolled = rolled % _MODULUS
        if length < _GRAM:
            return False
        seen = self._last.get(rolled)
        self._last[rolled] = length
        if seen is None:
            self._run = self._period = 0
            return False
        period = length - seen
        if period == self._period:
            self._run += 1
        else:
            self._period, self._run = period, 1
        return self._run >= self._min_tokens and self._run >= self._min_periods * period

    @property
    def is_near(self) -> bool:
        """Whether the text has begun to circle."""
        return self._run > 0
