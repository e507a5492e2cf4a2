"""How long a model may think: counted per token, closed at the end of a sentence if it can be."""

from __future__ import annotations

from typing import Final

_MARGIN_SHARE: Final = 8
_MIN_MARGIN: Final = 16
_SENTENCE_ENDS: Final = (b".", b"!", b"?", b"\n", "。".encode(), "！".encode(), "？".encode())


class ThinkingBudget:
    """A budget of ``limit`` tokens: within its last eighth any sentence end closes, at its end
    whatever stands there."""

    __slots__ = ("hard", "soft")

    def __init__(self, limit: int) -> None:
        self.hard = limit
        self.soft = max(0, limit - max(_MIN_MARGIN, limit // _MARGIN_SHARE))

    def is_spent(self, num_tokens: int, last: bytes) -> bool:
        """Whether reasoning of this length, whose last token has these bytes, is to be closed."""
        if num_tokens < self.soft:
            return False
        return num_tokens >= self.hard or last.rstrip(b" ").endswith(_SENTENCE_ENDS)
