"""What the protocol refuses.

::

    ProtocolError                   protocol
    ├── MessageError                bad-message      a message or field that cannot be encoded
    ├── ToolSchemaError             bad-tool         a tool definition that cannot be rendered
    ├── EffortError                 bad-effort       an effort that the revision does not know
    ├── RevisionError               bad-revision     an unknown or undetectable prompt revision
    ├── TokenizerError              bad-tokenizer    a tokenizer that lacks a special token
    └── ReplayError                 bad-replay-file  a replay file of another format

The parser is absent on purpose: whatever a model says is a result, never an exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from baleen.errors import ProtocolError


class MessageError(ProtocolError):
    """A message that no prompt can be made of.

    ``index`` counts messages as the caller sent them, ``field`` is the path below that message.
    """

    code = "bad-message"

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.index = index
        self.field = field

    def __str__(self) -> str:
        where = "" if self.index is None else f"messages[{self.index}]"
        if self.field:
            where = f"{where}.{self.field}" if where else self.field
        text = super().__str__()
        return f"{where}: {text}" if where and where not in text else text


def expect_object(value: Any, field: str, index: int | None = None) -> Mapping[str, Any]:
    """A JSON object from a request; a field that is missing is an empty one.

    Raises:
        MessageError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MessageError("must be an object", index=index, field=field)
    return value


def expect_list(value: Any, field: str, index: int | None = None) -> Sequence[Any]:
    """A JSON array from a request.

    Raises:
        MessageError: it is something else.
    """
    if not isinstance(value, list | tuple):
        raise MessageError("must be a list", index=index, field=field)
    return value


class ToolSchemaError(ProtocolError):
    """A tool definition that cannot be shown to the model as it stands."""

    code = "bad-tool"


class EffortError(ProtocolError):
    """A reasoning effort that this revision of the prompt has no words for."""

    code = "bad-effort"


class RevisionError(ProtocolError):
    """A prompt revision that is unknown, or cannot be read off a checkpoint folder."""

    code = "bad-revision"


class TokenizerError(ProtocolError):
    """A tokenizer that cannot express the prompt: a special token is missing from it."""

    code = "bad-tokenizer"


class ReplayError(ProtocolError):
    """A replay file that this version cannot read."""

    code = "bad-replay-file"
