"""What a model said in one turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class CallStatus(StrEnum):
    """How far a call can be trusted."""

    CLEAN = "clean"
    """As the format wants it."""
    REPAIRED = "repaired"
    """Unambiguous, though not as the format wants it; the kinds of repair are counted."""
    MALFORMED = "malformed"
    """Something could not be read; the raw text stands in its place as a JSON string."""
    INCOMPLETE = "incomplete"
    """Cut off; the arguments are not terminated."""


class RepairKind(StrEnum):
    """What a parser put right, or had to set aside."""

    CALL_IN_REASONING = "call-in-reasoning"
    """A call opened before the reasoning was closed."""
    BLOCK_NAME = "block-name"
    """A block under another name than the dialect's."""
    BARE_INVOKE = "bare-invoke"
    """An invocation without a block around it."""
    SELF_CLOSING = "self-closing"
    """An invocation or parameter closed within its own tag."""
    TAG = "tag"
    """A tag that is not closed, or has attributes out of order or misspelt."""
    MISSING_ATTRIBUTE = "missing-attribute"
    """A parameter that does not say whether it is a string."""
    PARAMETER_CLOSER = "parameter-closer"
    """A parameter closed by a misspelt tag, or by the next tag."""
    INVOKE_CLOSER = "invoke-closer"
    """An invocation closed by a misspelt tag, or by the next tag."""
    STRING_TO_JSON = "string-to-json"
    """A string that the schema wants as another type."""
    JSON_TO_STRING = "json-to-string"
    """A bare value that the schema wants as a string."""
    LITERAL = "literal"
    """A Python literal (True, False, None) in place of the JSON one."""
    UNWRAPPED = "unwrapped"
    """All arguments inside one parameter named ``arguments``."""
    JSON_BODY = "json-body"
    """A JSON object in place of parameters."""
    INVALID_JSON = "invalid-json"
    """A value that is not JSON and that no schema explains; the call is malformed."""
    EMPTY_NAME = "empty-name"
    """An invocation of nothing; the call is malformed."""
    STRAY_TAG = "stray-tag"
    """A tag where none belongs; dropped."""
    STRAY_TOKEN = "stray-token"
    """A control token in prose; dropped."""
    STRAY_TEXT = "stray-text"
    """Text inside a block but outside its parameters; dropped."""
    TEXT_AFTER_BLOCK = "text-after-block"
    """Text behind a block; dropped."""
    SUPPRESSED_CALL = "suppressed-call"
    """A call in a turn that allows none; dropped."""
    FOREIGN_MARKUP = "foreign-markup"
    """A call in another spelling of the markup, recovered on request."""


@dataclass(slots=True)
class ParsedCall:
    """A tool call; ``arguments`` is JSON text unless the call is incomplete."""

    id: str
    name: str
    arguments: str
    status: CallStatus


@dataclass(slots=True)
class Turn:
    """One assistant turn, read."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[ParsedCall] = field(default_factory=list)
    incomplete_calls: list[ParsedCall] = field(default_factory=list)
    """Calls that were cut off; never among ``tool_calls``."""
    finish_reason: str = "stop"
    """stop, length, tool_calls, or whatever the engine reported beyond these."""
    repairs: dict[str, int] = field(default_factory=dict)
    """How often each :class:`RepairKind` happened; empty for a turn in perfect form."""

    @property
    def no_answer(self) -> bool:
        """The model thought, and then neither answered nor called."""
        return bool(self.reasoning) and not (
            self.content or self.tool_calls or self.incomplete_calls
        )
