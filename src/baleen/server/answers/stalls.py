"""Answers that leave an agent standing still, by kind."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final


class StallKind(StrEnum):
    """What went wrong with a turn that ended, or did not."""

    EMPTY_AFTER_REASONING = "empty_after_reasoning"
    """The model thought, and then neither said nor called anything."""
    EMPTY_AFTER_TOOL_RESULT = "empty_after_tool_result"
    """Nothing at all came after tool results."""
    EMPTY = "empty"
    """Nothing at all came."""
    ANNOUNCED_NO_ACTION = "announced_no_action"
    """The model said what it was about to do, and stopped."""
    REASONING_LOOP = "reasoning_loop"
    """The reasoning repeated itself."""
    NO_BYTES = "no_bytes"
    """The upstream fell silent."""
    CALL_AS_PROSE = "call_as_prose"
    """A call was written as text."""


RECOVERABLE: Final = frozenset(
    {
        StallKind.EMPTY_AFTER_REASONING,
        StallKind.EMPTY_AFTER_TOOL_RESULT,
        StallKind.EMPTY,
        StallKind.ANNOUNCED_NO_ACTION,
    }
)
"""Stalls after which decoding once more, end-of-sentence masked, may help."""

_PROSE_CALL: Final = re.compile(
    r"<tool_call>|<function[ =]|<invoke name="
    r"|```(?:tool_call|json)\s*\{\s*\"(?:name|tool|function)\""
    r"|^\s*\{\s*\"name\"\s*:\s*\"[^\"]+\"\s*,\s*\"(?:arguments|parameters)\"",
    re.MULTILINE,
)


def stall_of(
    *,
    content: str,
    has_calls: bool,
    has_reasoning: bool,
    shows_tools: bool,
    follows_result: bool,
) -> StallKind | None:
    """The stall that a turn which ended with ``stop`` amounts to; None if it is an answer."""
    if has_calls:
        return None
    said = content.strip()
    if not said:
        if has_reasoning:
            return StallKind.EMPTY_AFTER_REASONING
        return StallKind.EMPTY_AFTER_TOOL_RESULT if follows_result else StallKind.EMPTY
    if shows_tools and said.endswith((":", "：")):
        return StallKind.ANNOUNCED_NO_ACTION
    if shows_tools and _PROSE_CALL.search(said):
        return StallKind.CALL_AS_PROSE
    return None
