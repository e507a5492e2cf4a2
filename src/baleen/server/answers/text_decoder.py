"""Ids to text, as they come: a character that is spread over tokens waits for the last of them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from baleen.protocol.pieces import table_for


class TextDecoder:
    """Decodes one output; markers are left out, as engines do."""

    def __init__(self, tokenizer: Any) -> None:
        self._table = table_for(tokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The text of some more ids."""
        markers, bytes_of = self._table.markers, self._table.bytes_of
        return self._decoder.decode(b"".join(bytes_of(n) for n in ids if n not in markers))

    def finish(self) -> str:
        """What was held back."""
        return self._decoder.decode(b"", True)
