"""One completion while it is being sampled, and as a response."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from baleen.server.answers.stop_strings import StopStrings
from baleen.server.answers.text_decoder import TextDecoder
from baleen.server.base import Constraint, Generation, Piece
from baleen.server.requests.completion_ask import CompletionAsk
from baleen.server.room import Room

if TYPE_CHECKING:
    from baleen.server.gateway import Gateway
    from baleen.server.wire.sse import EventStream

Top = Sequence[Sequence[tuple[int, float]]]


class CompletionRun:
    """Takes the tokens of one completion; its text ends before a stop string, its ids behind."""

    def __init__(self, gateway: Gateway, ask: CompletionAsk, prompt_ids: Sequence[int]) -> None:
        from baleen.server.gateway import new_id

        self.id = new_id("cmpl-")
        self.ids: list[int] = []
        self.text = ""
        self.finish: str | None = None
        self._gateway, self._ask = gateway, ask
        self.asked = Generation(
            ids=prompt_ids,
            max_tokens=max(1, ask.max_tokens),
            temperature=ask.temperature,
            top_p=ask.top_p,
            seed=ask.seed,
            top_logprobs=ask.logprobs,
            min_tokens=ask.min_tokens,
            constraint=Constraint(form=ask.form) if ask.form is not None else None,
            scores_prompt=ask.scores_prompt,
            request_id=self.id,
        )
        self._logprobs: list[float] = []
        self._top: list[Sequence[tuple[int, float]]] = []
        self._prompt_logprobs: Sequence[float] = ()
        self._decoder = TextDecoder(gateway.tokenizer)
        self._stops = StopStrings(ask.stop) if ask.stop else None
        self._created = int(time.time())
        self._stream: EventStream | None = None
        self.room = Room()
        self._num_cached = 0
        self._num_chars = 0
        """Of the text that has been told; where the next token begins."""
        self._has_echoed = not ask.echo

    # --- taking tokens -------------------------------------------------------------------------

    def begin(self, stream: EventStream) -> None:
        """Tell what comes to a stream."""
        self._stream, self.room = stream, stream.room

    def take(self, piece: Piece) -> bool:
        """Some more tokens; False behind the end."""
        if piece.cached_tokens is not None and not self._num_cached:
            self._num_cached = piece.cached_tokens
        if piece.prompt_logprobs:
            self._prompt_logprobs = piece.prompt_logprobs
        if self.finish is not None:
            return False
        if self._ask.max_tokens == 0:  # the prompt is all that was wanted
            piece = Piece((), finish="length")
        text = self._text_of(piece)
        if self._stream is not None and (piece.ids or piece.finish):
            chunk = self._object(text, piece.ids, piece.logprobs, piece.top)
            self._stream.write(f"data: {json.dumps(chunk)}\n\n")
        return self.finish is None

    def _text_of(self, piece: Piece) -> str:
        self.ids += piece.ids
        self._logprobs += piece.logprobs
        self._top += piece.top
        self._gateway.telemetry.generation_tokens.plain += len(piece.ids)
        self.finish = piece.finish
        if self.finish is None and len(self.ids) >= self.asked.max_tokens:
            self.finish = "length"
        text = self._decoder.feed(piece.ids)
        if self.finish is not None:
            text += self._decoder.finish()
        if self._stops is not None:
            text = self._stops.take(text)
            if self._stops.found is not None:
                self.finish = "stop"
            elif self.finish is not None:
                text += self._stops.take_rest()
        self.text += text
        return text

    def count(self) -> None:
        """Note in the metrics what came of it."""
        telemetry, num_prompt = self._gateway.telemetry, len(self.asked.ids)
        telemetry.count_prompt(num_prompt, self._num_cached)
        telemetry.request_generated.observe(len(self.ids))
        telemetry.success.add(1, self.finish or "stop")

    # --- telling -------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The whole completion."""
        told = self._object(self.text, self.ids, self._logprobs, self._top)
        return {**told, "usage": self._usage()}

    def last_events(self) -> str:
        """Usage, where it was asked for, and the end of the stream."""
        if not self._ask.includes_usage:
            return "data: [DONE]\n\n"
        chunk = {**self._envelope(), "choices": [], "usage": self._usage()}
        return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"

    def _envelope(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._ask.model,
        }

    def _object(
        self, text: str, ids: Sequence[int], logprobs: Sequence[float], top: Top
    ) -> dict[str, Any]:
        returned = list(ids)
        if not self._has_echoed:
            self._has_echoed = True
            prompt = self.asked.ids
            text = TextDecoder(self._gateway.tokenizer).feed(prompt) + text
            if self._ask.scores_prompt:
                ids, logprobs = [*prompt, *ids], [*self._prompt_logprobs, *logprobs]
                top = [*([()] * len(prompt)), *top]
        choice: dict[str, Any] = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": self.finish,
        }
        if self._ask.logprobs is not None:
            choice["logprobs"] = self._logprob_lists(ids, logprobs, top)
        if self._ask.returns_ids:
            choice["token_ids"] = returned
            choice["prompt_token_ids"] = list(self.asked.ids)
        return {**self._envelope(), "choices": [choice]}

    def _logprob_lists(
        self, ids: Sequence[int], logprobs: Sequence[float], top: Top
    ) -> dict[str, Any]:
        """Log-probabilities as Completions has them: lists beside each other."""
        text_of = self._gateway.vocabulary.text_of
        words = [text_of(number) for number in ids]
        offsets: list[int] = []
        for word in words:
            offsets.append(self._num_chars)
            self._num_chars += len(word)
        others = None
        if self._ask.logprobs:
            others = [{text_of(n): x for n, x in entry} or None for entry in top]
        return {
            "tokens": words,
            "token_logprobs": [None if math.isnan(x) else x for x in logprobs],
            "top_logprobs": others,
            "text_offset": offsets,
        }

    def _usage(self) -> dict[str, Any]:
        num_prompt, num_sampled = len(self.asked.ids), len(self.ids)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_sampled,
            "total_tokens": num_prompt + num_sampled,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
        }
