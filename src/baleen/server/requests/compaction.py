"""When a conversation should be summarised, and what of it to keep word for word.

Advised when 85 % of the context is used, or fewer than 8,192 tokens are left. Kept are the messages
at the end that fit into a tenth of the context, 50,000 tokens at most, from a user's message on, so
that no call is parted from its results. Whoever summarises has to send the same tools along, or the
prompt is another one from its beginning and nothing that is computed can be reused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from baleen.protocol.jsontext import dumps
from baleen.protocol.tokenizing import SegmentEncoder

_USED_SHARE: Final = 0.85
_LEAST_LEFT_TOKENS: Final = 8_192
_TAIL_SHARE: Final = 0.10
_MAX_TAIL_TOKENS: Final = 50_000


class Advice(NamedTuple):
    """What to do about the length of a conversation."""

    advised: bool
    keep_from: int
    """The first message to keep as it is; those before it, the system's aside, are summarised."""


def advise(
    messages: Sequence[Any], num_tokens: int, context_tokens: int, encoder: SegmentEncoder
) -> Advice:
    """Advice for a conversation whose prompt has this many tokens."""
    left = context_tokens - num_tokens
    least_left = min(_LEAST_LEFT_TOKENS, int(context_tokens * (1 - _USED_SHARE)))
    advised = num_tokens >= _USED_SHARE * context_tokens or left < least_left
    room = min(_MAX_TAIL_TOKENS, int(context_tokens * _TAIL_SHARE))
    keep_from = len(messages)
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        room -= len(encoder.encode_text(dumps(message)))
        if room < 0:
            break
        if isinstance(message, Mapping) and message.get("role") == "user":
            keep_from = index
    return Advice(advised, keep_from)
