"""The few token ids that the gateway itself has to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baleen.protocol import tokens
from baleen.protocol.errors import TokenizerError
from baleen.protocol.markup import dialect_of, write_block_opener
from baleen.protocol.pieces import table_for
from baleen.protocol.revision import Revision
from baleen.protocol.segments import Segment, SegmentWriter
from baleen.protocol.tokenizing import encoder_for


class Vocabulary:
    """Markers of one tokenizer, and the ids that open a block of calls."""

    def __init__(self, tokenizer: Any, revision: str) -> None:
        self._table = table_for(tokenizer)
        self.eos = self._id(tokens.EOS)
        self.think_close = self._id(tokens.THINK_CLOSE)
        self.dsml = self._id(tokens.DSML)
        writer = SegmentWriter()
        write_block_opener(writer, dialect_of(Revision(revision)))
        self.call_opener = encoder_for(tokenizer).encode(writer.finish())

    def bytes_of(self, number: int) -> bytes:
        """What an ordinary token contributes; nothing for markers."""
        return b"" if number in self._table.markers else self._table.bytes_of(number)

    def text_of(self, number: int) -> str:
        """A token as text, on its own."""
        marker = self._table.markers.get(number)
        return marker if marker is not None else self.bytes_of(number).decode("utf-8", "replace")

    def segments_of(self, ids: Sequence[int]) -> list[Segment]:
        """Ids as segments, markers alone."""
        return self._table.segments_of(ids)

    def _id(self, token: str) -> int:
        found = self._table.ids_of(token)
        if not found:
            raise TokenizerError(
                f"the tokenizer has no token {token!r}",
                remedy="use the tokenizer that belongs to the checkpoint",
            )
        return min(found)
