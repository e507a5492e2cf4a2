"""What a run writes down, one type per kind of record.

`prompt` and `tokens` hold exact token ids and are written only by endpoints that know them; `turn`
is the parsed reading of a finished turn and stands for it from then on. Times are UTC, RFC 3339.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, ClassVar

from baleen.agent.base import ToolCall, Turn, Usage
from baleen.agent.errors import WalError
from baleen.agent.outcome import Outcome


def now() -> str:
    """The current time as records write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Start:
    """First record: what the run is about. Everything else stands in config.json."""

    kind: ClassVar[str] = "start"
    run_id: str
    system: str
    question: str
    at: str


@dataclass(frozen=True)
class Policy:
    """Whose tokens follow: a digest of weights and prompt revision."""

    kind: ClassVar[str] = "policy"
    version: str


@dataclass(frozen=True)
class Prompt:
    """Token ids that were appended to the context before a turn is sampled."""

    kind: ClassVar[str] = "prompt"
    turn: int
    token_ids: list[int]


@dataclass(frozen=True)
class Tokens:
    """Tokens as sampled, with the log-probability the sampler gave each of them."""

    kind: ClassVar[str] = "tokens"
    turn: int
    token_ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class TurnDone:
    """A turn ended; nothing of it will be sampled again."""

    kind: ClassVar[str] = "turn"
    turn: int
    reading: Turn
    at: str


@dataclass(frozen=True)
class Box:
    """From here on commands run in this sandbox."""

    kind: ClassVar[str] = "box"
    box_id: str
    log: str
    """File name of the sandbox's own log in the run folder."""
    create_s: float
    """Seconds from asking for it to having it."""
    at: str


@dataclass(frozen=True)
class Call:
    """A call is about to be dispatched under this idempotency key."""

    kind: ClassVar[str] = "call"
    turn: int
    index: int
    call_id: str
    key: str
    timeout_s: float
    box_id: str
    at: str


@dataclass(frozen=True)
class Result:
    """What the model is shown of a call, and where that came from."""

    kind: ClassVar[str] = "result"
    turn: int
    index: int
    text: str
    source: str
    """`box` (it ran), `refused` (it could not be run), or `in_doubt` (nobody knows)."""
    exit_code: int | None
    duration_s: float
    replayed: bool
    """The sandbox answered from its log; the command had run for an earlier process."""
    at: str


@dataclass(frozen=True)
class Resumed:
    """Another process took the run over."""

    kind: ClassVar[str] = "resumed"
    at: str


@dataclass(frozen=True)
class End:
    """The run is over; after `infra_error` it may still be resumed."""

    kind: ClassVar[str] = "end"
    outcome: Outcome
    cause: str
    message: str
    at: str


Record = Start | Policy | Prompt | Tokens | TurnDone | Box | Call | Result | Resumed | End
KINDS: Mapping[str, type[Record]] = {
    kind.kind: kind
    for kind in (Start, Policy, Prompt, Tokens, TurnDone, Box, Call, Result, Resumed, End)
}


def to_fields(record: Record) -> dict[str, Any]:
    """The record as a flat mapping of plain values, with its kind."""
    if isinstance(record, TurnDone):
        return {"kind": record.kind, **asdict(record)}
    return {"kind": record.kind, **vars(record)}


def from_fields(values: Mapping[str, Any]) -> Record:
    """The inverse of `to_fields`.

    Raises:
        WalError: the kind is unknown or its fields are not the expected ones.
    """
    kind = KINDS.get(values.get("kind", ""))
    rest = {name: value for name, value in values.items() if name != "kind"}
    if kind is None or rest.keys() != {field.name for field in fields(kind)}:
        raise WalError(
            f"a record of kind {values.get('kind')!r} with the fields {sorted(rest)} is not known",
            remedy="it was written by another version of baleen; use that one",
        )
    if kind is TurnDone:
        rest["reading"] = _turn(rest["reading"])
    if kind is End:
        rest["outcome"] = Outcome(rest["outcome"])
    return kind(**rest)


def _turn(values: Mapping[str, Any]) -> Turn:
    return Turn(
        **{
            **values,
            "calls": tuple(ToolCall(**call) for call in values["calls"]),
            "usage": Usage(**values["usage"]),
            "reasoning_fields": tuple(values["reasoning_fields"]),
        }
    )
