"""Where a prompt stops being the continuation of an earlier one.

An engine that kept the earlier prompt's cache can use it up to the first difference. Most turns
only append. What breaks a prefix is named by the message that the difference falls into: reasoning
that is dropped because a request carries no tools, another effort or tool list at the front, a
system message that moved there, an edit by the client.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from baleen.protocol.segments import Segment

Mark = tuple[int, int, str]
"""The segment that a message starts with, the message's index as it was sent, and its kind."""


class CacheBreak(NamedTuple):
    """The first message that differs, and the number of segments before the difference."""

    message: int
    kind: str
    num_equal_segments: int

    def __str__(self) -> str:
        if self.message < 0:
            return f"the front of the prompt differs ({self.kind})"
        return f"messages[{self.message}] ({self.kind}) is rendered differently"


def find_cache_break(
    before: Sequence[Segment], after: Sequence[Segment], marks: Sequence[Mark]
) -> CacheBreak | None:
    """Compare two prompts; ``marks`` are those of the later one. None if it only appends."""
    shared = min(len(before), len(after))
    place = next((i for i in range(shared) if before[i] != after[i]), shared)
    if place == len(before) or _only_appends(before, after, place):
        return None
    message, kind = -1, "system, tools or effort"
    for start, index, role in marks:
        if start > place:
            break
        message, kind = index, role
    return CacheBreak(message, kind, place)


def _only_appends(before: Sequence[Segment], after: Sequence[Segment], place: int) -> bool:
    """The last text of a prompt may go on in the next one without a token between."""
    if place != len(before) - 1 or place >= len(after):
        return False
    (old, old_special), (new, new_special) = before[place], after[place]
    return not old_special and not new_special and new.startswith(old)
