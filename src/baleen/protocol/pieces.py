"""Token level: what each sampled id contributes, as text or as a marker.

A special token is a marker by its id, so text that only spells one stays text. Ordinary tokens are
bytes, and a character may be spread over several: bytes are held until the character is whole.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from typing import Any, Final

from baleen.protocol import tokens
from baleen.protocol.errors import TokenizerError
from baleen.protocol.lexer import TextLexer, dispatch
from baleen.protocol.machine import Machine
from baleen.protocol.segments import Segment

_CACHE_SIZE: Final = 8
_REPLACEMENT: Final = "�"


class PieceTable:
    """What the ids of one tokenizer stand for; entries are made when first asked for."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(backend, "decode") or not hasattr(backend, "token_to_id"):
            raise TokenizerError(
                f"{type(backend).__name__} has no decode or no token_to_id",
                remedy="pass a tokenizers.Tokenizer or an object with both",
            )
        self.backend = backend
        self.markers: dict[int, str] = {
            found: token
            for token in tokens.ALL
            if (found := backend.token_to_id(token)) is not None
        }
        self._add_special_tokens()
        self._bytes: dict[int, bytes] = {}
        self._alphabet = _byte_alphabet() if _is_byte_level(backend) else None
        self.is_byte_level = self._alphabet is not None
        """Whether each ordinary id stands for fixed bytes."""

    def _add_special_tokens(self) -> None:
        listing = getattr(self.backend, "get_added_tokens_decoder", None)
        if listing is not None:
            for number, added in listing().items():
                if added.special:
                    self.markers.setdefault(int(number), added.content)

    def bytes_of(self, number: int) -> bytes:
        """The bytes of an ordinary id of a byte-level tokenizer."""
        known = self._bytes.get(number)
        if known is None:
            known = self._bytes[number] = self._look_up(number)
        return known

    def ids_of(self, token: str) -> frozenset[int]:
        """The ids of a special token; empty if the tokenizer has none."""
        return frozenset(number for number, known in self.markers.items() if known == token)

    def segments_of(self, ids: Iterable[int]) -> list[Segment]:
        """Ids as segments: markers alone, the text between them in one piece."""
        segments: list[Segment] = []
        run: list[int] = []
        for number in ids:
            marker = self.markers.get(number)
            if marker is None:
                run.append(number)
                continue
            self._add_text(segments, run)
            segments.append((marker, True))
            run = []
        self._add_text(segments, run)
        return segments

    def _add_text(self, segments: list[Segment], ids: list[int]) -> None:
        if not ids:
            return
        if self.is_byte_level:
            text = b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")
        else:
            text = str(self.backend.decode(ids, skip_special_tokens=False))
        segments.append((text, False))

    def _look_up(self, number: int) -> bytes:
        token = self.backend.id_to_token(number)
        alphabet = self._alphabet
        if token is None or alphabet is None:
            return b""
        try:
            return bytes(alphabet[char] for char in token)
        except KeyError:
            # An added token that is no control token is stored as it reads.
            return str(token).encode()


_tables: dict[int, tuple[Any, PieceTable]] = {}


def table_for(tokenizer: Any) -> PieceTable:
    """The table of this tokenizer, built once."""
    entry = _tables.get(id(tokenizer))
    if entry is not None and entry[0] is tokenizer:
        return entry[1]
    table = PieceTable(tokenizer)
    while len(_tables) >= _CACHE_SIZE:
        _tables.pop(next(iter(_tables)))
    _tables[id(tokenizer)] = (tokenizer, table)
    return table


class TokenLexer:
    """Feeds a machine from token ids; ``foreign`` recovers other spellings of the markup."""

    def __init__(self, machine: Machine, tokenizer: Any, *, foreign: bool) -> None:
        self._machine = machine
        self._inner = TextLexer(machine, foreign=True, certain=True) if foreign else None
        self._table = table_for(tokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_whole = True
        """Nothing of a character is waiting for the rest of it."""
        self._window: list[int] = []

    def feed(self, ids: Iterable[int]) -> None:
        """More output; cut anywhere between tokens."""
        markers, is_byte_level = self._table.markers, self._table.is_byte_level
        for number in ids:
            marker = markers.get(number)
            if marker is not None:
                self._mark(marker)
                continue
            text = self._decode_bytes(number) if is_byte_level else self._decode_in_window(number)
            if not text:
                continue
            if self._inner is not None:
                self._inner.feed(text)
            else:
                self._machine.text(text)

    def _mark(self, marker: str) -> None:
        self._flush_bytes()
        if self._inner is not None:
            if marker == tokens.DSML and (bracket := self._inner.take_doubled_bracket()):
                spelling = f"{bracket}｜{marker}"
                self._machine.foreign_dsml(spelling, bracket, is_certain=True)
                return
            self._inner.flush()
        dispatch(self._machine, marker)

    def _decode_bytes(self, number: int) -> str:
        data = self._table.bytes_of(number)
        if self._is_whole and data.isascii():
            return data.decode("ascii")
        text = self._decoder.decode(data)
        self._is_whole = not self._decoder.buffer
        return text

    def _decode_in_window(self, number: int) -> str:
        """For tokenizers whose tokens depend on their neighbours: decode the last few together."""
        before = self._decode(self._window)
        self._window.append(number)
        after = self._decode(self._window)
        if after.endswith(_REPLACEMENT) and len(self._window) < 16:
            return ""
        self._window = self._window[-4:]
        return after[len(before.rstrip(_REPLACEMENT)) :]

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return str(self._table.backend.decode(ids, skip_special_tokens=False))

    def _flush_bytes(self) -> None:
        text = self._decoder.decode(b"", True) if self._table.is_byte_level else ""
        self._decoder.reset()
        self._is_whole = True
        self._window = []
        if not text:
            return
        if self._inner is not None:
            self._inner.feed(text)
        else:
            self._machine.text(text)

    def finish(self) -> None:
        """No more output: half a character is a replacement character."""
        self._flush_bytes()
        if self._inner is not None:
            self._inner.finish()


def _is_byte_level(backend: Any) -> bool:
    describe = getattr(backend, "to_str", None)
    if describe is None:
        return False
    decoder = json.loads(describe()).get("decoder") or {}
    return decoder.get("type") == "ByteLevel"


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies.

    Printable Latin-1 characters stand for themselves, the others are moved up from U+0100 in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    moved = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(moved)})
    return alphabet
