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
