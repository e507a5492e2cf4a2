"""Segments to ids, such that text never becomes a control token.

A tokenizer's added vocabulary turns the *spelling* of a special token into its id wherever it
stands, so a user or a tool result could write ``<｜Assistant｜>`` and speak for the model. Special
segments are therefore mapped straight to ids, and every other segment goes through an encoder that
does not know the added vocabulary:

- for a ``tokenizers.Tokenizer`` (or a wrapper that has one as ``backend_tokenizer``), a copy of it
  rebuilt from its own JSON with the added tokens removed, from the model's vocabulary too;
- for any other object, the object itself, given text in which every known spelling is cut in two.

Whatever comes back is checked: a control id in the encoding of plain text is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from baleen.protocol import tokens
from baleen.protocol.errors import TokenizerError
from baleen.protocol.segments import Sampled, Segment


class Tokenizer(Protocol):
    """What is needed of a tokenizer; ``tokenizers.Tokenizer`` has it."""

    def encode(self, text: str, /, *, add_special_tokens: bool = ...) -> Any:
        """Ids of a text, or an object that has them as ``ids``."""

    def token_to_id(self, token: str, /) -> int | None:
        """Id of a token, None if unknown."""


class SegmentEncoder:
    """Encodes segments with one tokenizer; building it costs a copy of the vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._id_of = _id_lookup(backend)
        self._special_ids: dict[str, int] = {}
        added = _added_tokens(backend)
        self._control_ids = frozenset(added) | frozenset(_known_ids(self._id_of))
        if hasattr(backend, "to_str"):
            self._plain = _without_added(backend)
        else:
            self._plain = _with_cut_spellings(backend, {*tokens.ALL, *added.values()})

    def encode(self, segments: Sequence[Segment], sampled: Sequence[Sampled] = ()) -> list[int]:
        """Ids of the segments; those of ``sampled`` runs are taken as they are.

        Raises:
            TokenizerError: a special token is not in the vocabulary.
        """
        ids: list[int] = []
        position = 0
        for run in sampled:
            ids += self._encode(segments[position : run.start])
            ids += run.ids
            position = run.end
        return ids + self._encode(segments[position:])

    def _encode(self, segments: Iterable[Segment]) -> list[int]:
        ids: list[int] = []
        special_ids = self._special_ids
        for text, is_special in segments:
            if is_special:
                known = special_ids.get(text)
                ids.append(self._special_id(text) if known is None else known)
            else:
                ids.extend(self.encode_text(text))
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of ordinary text, whatever it spells."""
        try:
            ids = self._plain(text)
        except (TypeError, UnicodeEncodeError):
            # JSON can spell half a surrogate pair, which no tokenizer can read.
            ids = self._plain(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        if not self._control_ids.isdisjoint(ids):
            raise TokenizerError(
                f"the tokenizer turns plain text into a control token: {text[:80]!r}",
                remedy="use a tokenizer whose model vocabulary holds no special token",
            )
        return ids

    def _special_id(self, token: str) -> int:
        found = self._id_of(token)
        if found is None:
            raise TokenizerError(
                f"the tokenizer has no token {token!r}",
                remedy="use the tokenizer that belongs to the checkpoint",
            )
        self._special_ids[token] = found
        return found


_CACHE_SIZE: Final = 8
_cache: dict[int, tuple[Any, int, SegmentEncoder]] = {}


def encoder_for(tokenizer: Any) -> SegmentEncoder:
    """The encoder of this tokenizer, built once; a tokenizer that has grown gets a new one."""
    size = _vocabulary_size(tokenizer)
    entry = _cache.get(id(tokenizer))
    if entry is not None and entry[0] is tokenizer and entry[1] == size:
        return entry[2]
    encoder = SegmentEncoder(tokenizer)
    while len(_cache) >= _CACHE_SIZE:
        _cache.pop(next(iter(_cache)))
    _cache[id(tokenizer)] = (tokenizer, size, encoder)
    return encoder


def _vocabulary_size(tokenizer: Any) -> int:
    measure = getattr(tokenizer, "get_vocab_size", None)
    return int(measure()) if measure is not None else -1


def _id_lookup(backend: Any) -> Callable[[str], int | None]:
    lookup: Callable[[str], int | None] | None = getattr(backend, "token_to_id", None)
    if lookup is None:
        raise TokenizerError(
            f"{type(backend).__name__} has no token_to_id",
            remedy="pass a tokenizers.Tokenizer or an object with encode and token_to_id",
        )
    return lookup


def _known_ids(id_of: Callable[[str], int | None]) -> Iterable[int]:
    return [found for token in tokens.ALL if (found := id_of(token)) is not None]


def _added_tokens(backend: Any) -> dict[int, str]:
    listing = getattr(backend, "get_added_tokens_decoder", None)
    if listing is None:
        return {}
    return {int(number): str(added.content) for number, added in listing().items()}


def _without_added(backend: Any) -> Callable[[str], list[int]]:
    """An encoder from the tokenizer's JSON, added tokens gone from every place that has them."""
    description = json.loads(backend.to_str())
    added = {entry["content"] for entry in description.get("added_tokens") or ()}
    description["added_tokens"] = []
    description["post_processor"] = None
    description["truncation"] = None
    description["padding"] = None
    model = description.get("model") or {}
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        for token in {*added, *tokens.ALL}:
            vocabulary.pop(token, None)
    elif isinstance(vocabulary, list):
        model["vocab"] = [
            [f"\0{place}", *rest] if piece in added or piece in tokens.ALL else [piece, *rest]
            for place, (piece, *rest) in enumerate(vocabulary)
        ]
    plain = type(backend).from_str(json.dumps(description))

    def encode(text: str) -> list[int]:
        ids: list[int] = plain.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _with_cut_spellings(backend: Any, spellings: set[str]) -> Callable[[str], list[int]]:
    """An encoder that never shows the tokenizer a whole special token."""
    longest_first = sorted(spellings, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        position = 0
        while match := pattern.search(text, position):
            # Cut behind the first character; what follows may itself start another spelling.
            cut = match.start() + 1
            ids += _ids(backend, text[position:cut])
            position = cut
        return ids + _ids(backend, text[position:])

    return encode


def _ids(backend: Any, text: str) -> list[int]:
    if not text:
        return []
    encoding = backend.encode(text, add_special_tokens=False)
    return list(getattr(encoding, "ids", encoding))
