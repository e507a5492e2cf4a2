"""An upstream that says what it is told to: for tests, demonstrations and benchmarks.

A script is a function from the request to what the model samples: text in which special tokens are
spelled out, or ids. It is cut into tokens by the real tokenizer, so everything behind it is real.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from baleen.protocol import tokens
from baleen.protocol.segments import Segment
from baleen.protocol.tokenizing import encoder_for
from baleen.server.base import Capabilities, EngineState, Generation, Piece, Taker
from baleen.server.errors import UpstreamError, UpstreamStallError
from baleen.server.prefix import num_shared


@dataclass(frozen=True)
class Line:
    """What is sampled for one request."""

    text: str | Sequence[int]
    """Special tokens may be spelled out; without an end-of-sentence token one is added."""
    ends: bool = True
    """False: the end is missing and the stream goes on only until ``max_tokens``."""
    delay_s: float = 0.0
    """Before each piece."""
    breaks_after: int | None = None
    """The stream breaks off behind as many tokens."""
    stalls_after: int | None = None
    """Nothing more comes behind as many tokens."""


Script = Callable[[Generation], "Line | str | Sequence[int]"]


class ScriptedUpstream:
    """Plays a script; remembers what it was asked, and what a prefix cache would have held."""

    def __init__(
        self,
        tokenizer: Any,
        script: Script,
        *,
        context_tokens: int = 1 << 20,
        tokens_per_piece: int = 1,
        stall_timeout_s: float = 300.0,
    ) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.asked: list[Generation] = []
        self.num_running = 0
        self.num_sampled = 0
        self.prefilled: list[int] = []
        """Per request: prompt tokens that the earlier requests had not computed."""
        self._context_tokens, self._per_piece = context_tokens, tokens_per_piece
        self._stall_timeout_s = stall_timeout_s
        self._computed: list[array[int]] = []
        self._encoder = encoder_for(tokenizer)
        self._eos = tokenizer.token_to_id(tokens.EOS)

    async def capabilities(self) -> Capabilities:
        """It can do everything but constrain."""
        return Capabilities("scripted", self._context_tokens, prompt_logprobs=True)

    async def generate(self, asked: Generation, taker: Taker) -> None:
        """Play the line for a request; what of it is in the prompt already is not said again."""
        self.asked.append(asked)
        line = self.script(asked)
        if not isinstance(line, Line):
            line = Line(line)
        ids = self._ids(line, asked)
        cached = self._note_prompt(asked)
        computed = array("I", asked.ids)
        self._computed.append(computed)
        self.num_running += 1
        try:
            async with aclosing(self._pieces(line, ids, asked, cached)) as pieces:
                async for piece in pieces:
                    computed.extend(piece.ids)
                    self.num_sampled += len(piece.ids)
                    if not taker.take(piece):
                        return
                    await taker.room.cleared()
        finally:
            self.num_running -= 1

    async def _pieces(
        self, line: Line, ids: list[int], asked: Generation, cached: int
    ) -> AsyncGenerator[Piece, None]:
        end = min(len(ids), asked.max_tokens)
        stops = [n for n in (line.breaks_after, line.stalls_after) if n is not None]
        limit = min([end, *stops])
        wants_logprobs = asked.top_logprobs is not None
        for start in range(0, limit, self._per_piece):
            await asyncio.sleep(line.delay_s)
            some = ids[start : min(start + self._per_piece, limit)]
            is_last = start + len(some) == end
            finish = None
            if is_last:
                finish = "stop" if end == len(ids) and line.ends else "length"
            logprobs = [-0.5] * len(some) if wants_logprobs else ()
            if start:
                yield Piece(some, logprobs, finish)
            else:
                yield Piece(some, logprobs, finish, cached, (), _scores(asked))
        if limit < end and limit == line.stalls_after:
            await asyncio.sleep(self._stall_timeout_s)
            raise UpstreamStallError("the script fell silent")
        if limit < end:
            raise UpstreamError("the script broke off")
        if end == 0:
            yield Piece((), (), "stop" if asked.max_tokens else "length", cached)

    def state(self) -> EngineState:
        """It never waits."""
        return EngineState()

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _note_prompt(self, asked: Generation) -> int:
        cached = max((num_shared(old, asked.ids) for old in self._computed[-8:]), default=0)
        self.prefilled.append(len(asked.ids) - cached)
        return cached

    def _ids(self, line: Line, asked: Generation) -> list[int]:
        if isinstance(line.text, str):
            ids = self._encoder.encode(segments_of(line.text))
        else:
            ids = list(line.text)
        if line.ends and self._eos not in ids:
            ids.append(self._eos)
        if asked.min_tokens and ids[:1] == [self._eos]:
            ids = self._encoder.encode_text("Here is the answer.") + ids
        return ids


def _scores(asked: Generation) -> Sequence[float]:
    """Log-probabilities of a prompt's tokens: the same for each."""
    return (math.nan, *([-0.25] * (len(asked.ids) - 1))) if asked.scores_prompt else ()


def segments_of(text: str) -> list[Segment]:
    """Text in which special tokens are spelled out, as segments."""
    segments: list[Segment] = []
    while text:
        found = [(text.find(token), token) for token in tokens.ALL]
        place, token = min(((p, t) for p, t in found if p >= 0), default=(-1, ""))
        if place < 0:
            segments.append((text, False))
            break
        if place:
            segments.append((text[:place], False))
        segments.append((token, True))
        text = text[place + len(token) :]
    return segments
