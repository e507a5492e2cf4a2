"""The one message type that every dialect is read into and written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from baleen.protocol.segments import Segment


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    """Rendered as a user turn; only the checkpoint encoder knows it."""
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    """One tool result; results reach the model inside user turns."""
    REMINDER = "latest_reminder"
    """A note on date and place that outlives no turn."""


@dataclass(slots=True)
class ToolCall:
    """A call as an earlier assistant turn made it; ``arguments`` is JSON text as sent."""

    id: str
    name: str
    arguments: str
    given_as_object: Mapping[str, Any] | None = None
    """The arguments, when a client sent an object in place of text."""


@dataclass(slots=True)
class Block:
    """A piece of a user turn: text, or a tool result, which has the id of its call."""

    text: str
    call_id: str | None = None
    images: Sequence[int] = ()
    """Where in the text image placeholders start."""


@dataclass(frozen=True, slots=True)
class Replay:
    """An assistant turn as it was sampled, the end-of-sentence token included."""

    reasoning: Sequence[Segment]
    """Up to and including ``</think>``; empty if it has none."""
    rest: Sequence[Segment]
    reasoning_ids: Sequence[int]
    rest_ids: Sequence[int]
    is_open_ended: bool = False
    """The turn began in reasoning that nothing closed, so it cannot do without it."""


@dataclass(slots=True)
class Message:
    """One message, free of any dialect.

    ``index`` counts messages as the caller sent them and serves error texts and cache reports.
    """

    role: Role
    content: str = ""
    index: int = -1
    images: Sequence[int] = ()
    """Where in the content image placeholders start."""
    reasoning: str | None = None
    """None: the client sent no such field, which differs from an empty one."""
    calls: list[ToolCall] = field(default_factory=list)
    call_id: str | None = None
    """For a tool result: the call that it answers."""
    blocks: list[Block] | None = None
    """For a user turn: its pieces; None until turns are merged, unless it came in pieces."""
    tools: list[Any] | None = None
    """Tools that this message carries (checkpoint encoder only)."""
    response_format: Any = None
    task: str | None = None
    is_open: bool = False
    """An assistant turn written without its closing token."""
    is_prefix: bool = False
    """The model is to continue this very message."""
    replay: Replay | None = None
    """The turn's own tokens, to be used in place of its fields."""
