"""What a parser reports while a model speaks.

Joined per kind and call, the deltas of a turn are exactly the fields of its final
:class:`~baleen.protocol.turn.Turn`, however the output was cut into pieces.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ReasoningDelta:
    """More reasoning."""

    text: str


@dataclass(slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(slots=True)
class CallStart:
    """A call begins: its name is complete, its arguments are not."""

    index: int
    id: str
    name: str


@dataclass(slots=True)
class ArgumentsDelta:
    """More of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(slots=True)
class CallEnd:
    """A call is complete; ``status`` is clean, repaired or malformed."""

    index: int
    status: str


Event = ReasoningDelta | ContentDelta | CallStart | ArgumentsDelta | CallEnd
