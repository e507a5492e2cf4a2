"""Completions: tokens in, tokens out; for training, and for clients that encode themselves."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from typing import Any

from aiohttp import web

from baleen.protocol.tokenizing import encoder_for
from baleen.server.answers.stop_strings import StopStrings
from baleen.server.answers.text_decoder import TextDecoder
from baleen.server.base import Generation, Piece
from baleen.server.doors.door import AnswerDoor, Call
from baleen.server.errors import BadRequestError
from baleen.server.gateway import new_id
from baleen.server.wire.sse import EventStream


class CompletionsDoor(AnswerDoor):
    """`POST /v1/completions`: one prompt, as text or as token ids, without any template."""

    async def handle(self, call: Call) -> web.StreamResponse:
        """Answer a request."""
        run = await self._run(call)
        if run.is_streamed:
            return await self._stream_run(call, run)
        await self._generate(call, run)
        return web.Response(text=json.dumps(run.whole()), content_type="application/json")

    async def _generate(self, call: Call, run: _Run) -> None:
        with call.trace.upstream(0) if call.trace else nullcontext():
            await self.gateway.upstream.generate(run.asked, run)
        if call.trace is not None:
            call.trace.completed(len(run.asked.ids), len(run.ids), run.finish)

    async def _run(self, call: Call) -> _Run:
        body, config = call.body, self.gateway.config
        ids = self._ids(body.get("prompt"))
        context = (await self.gateway.capabilities()).context_tokens
        max_tokens = _integer(body, "max_tokens", 16)
        if not 1 <= max_tokens <= config.max_tokens_limit:
            raise BadRequestError(
                "Invalid max_tokens value, the valid range of max_tokens is"
                f" [1, {config.max_tokens_limit}]"
            )
        if len(ids) + max_tokens > context:
            raise BadRequestError(
                f"This model's maximum context length is {context} tokens. However, you requested"
                f" {len(ids) + max_tokens} tokens ({len(ids)} in the messages, {max_tokens} in the"
                " completion). Please reduce the length of the messages or completion."
            )
        logprobs = body.get("logprobs")
        asked = Generation(
            ids=ids,
            max_tokens=max_tokens,
            temperature=_number(body, "temperature", config.temperature, 2.0),
            top_p=_number(body, "top_p", 1.0, 1.0),
            seed=None if body.get("seed") is None else _integer(body, "seed", 0),
            top_logprobs=None if logprobs is None else _integer(body, "logprobs", 0),
            request_id=new_id("cmpl-"),
        )
        return _Run(self, asked, body)

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return [
                int(number) for number in encoder_for(self.gateway.tokenizer).encode_text(prompt)
            ]
        size = self.gateway.tokenizer.get_vocab_size()
        is_ids = isinstance(prompt, list) and all(
            isinstance(number, int) and 0 <= number < size for number in prompt
        )
        if not is_ids or not prompt:
            raise BadRequestError("`prompt` must be one text, or a list of token ids of this model")
        return list(prompt)

    async def _stream_run(self, call: Call, run: _Run) -> web.StreamResponse:
        stream = EventStream({"x-request-id": run.asked.request_id}, self._keep_alive)
        try:
            response = await stream.open(call.request)
            run.stream = stream
            await self._generate(call, run)
            if run.includes_usage:
                stream.write(f"data: {json.dumps(run.usage_chunk())}\n\n")
            stream.write("data: [DONE]\n\n")
            await stream.close()
        finally:
            stream.discard()
        return response


class _Run:
    """One completion while it is being sampled; takes its tokens."""

    def __init__(self, door: CompletionsDoor, asked: Generation, body: dict[str, Any]) -> None:
        gateway = door.gateway
        self.asked = asked
        self.is_streamed = bool(body.get("stream"))
        self.includes_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._returns_ids = bool(body.get("return_token_ids"))
        self._model = str(body.get("model") or gateway.config.model_name)
        self._vocabulary = gateway.vocabulary
        self._decoder = TextDecoder(gateway.tokenizer)
        stop = body.get("stop")
        stops = [stop] if isinstance(stop, str) else list(stop or [])
        self._stops = StopStrings(stops) if stops else None
        self._created = int(time.time())
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.finish: str | None = None
        self.stream: EventStream | None = None
        self._cached = 0

    @property
    def is_full(self) -> bool:
        """Whether the client reads too slowly."""
        return self.stream is not None and self.stream.is_full

    async def drained(self) -> None:
        """The client has caught up."""
        if self.stream is not None:
            await self.stream.drained()

    def take(self, piece: Piece) -> bool:
        """Some more tokens; False behind the end."""
        if piece.cached_tokens is not None:
            self._cached = piece.cached_tokens
        if self.finish is None:
            text = self._text_of(piece)
            if self.stream is not None:
                chunk = self._object(text, piece.ids, piece.logprobs)
                self.stream.write(f"data: {json.dumps(chunk)}\n\n")
        return self.finish is None

    def _text_of(self, piece: Piece) -> str:
        self.ids += piece.ids
        self.logprobs += piece.logprobs
        self.finish = piece.finish
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

    def whole(self) -> dict[str, Any]:
        """The whole completion."""
        return {**self._object(self.text, self.ids, self.logprobs), "usage": self._usage()}

    def usage_chunk(self) -> dict[str, Any]:
        """The chunk that holds nothing but usage."""
        return {**self._object("", (), ()), "choices": [], "usage": self._usage()}

    def _object(self, text: str, ids: Any, logprobs: Any) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": self.finish,
        }
        if self.asked.top_logprobs is not None:
            choice["logprobs"] = {
                "tokens": [self._vocabulary.text_of(number) for number in ids],
                "token_logprobs": [None if math.isnan(x) else x for x in logprobs],
                "top_logprobs": None,
                "text_offset": [],
            }
        if self._returns_ids:
            choice["token_ids"] = list(ids)
            choice["prompt_token_ids"] = list(self.asked.ids)
        return {
            "id": self.asked.request_id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
        }

    def _usage(self) -> dict[str, Any]:
        num_prompt, num_sampled = len(self.asked.ids), len(self.ids)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_sampled,
            "total_tokens": num_prompt + num_sampled,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


def _integer(body: dict[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequestError(f"`{name}` must be an integer")
    return value


def _number(body: dict[str, Any], name: str, default: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise BadRequestError(f"Invalid {name} value, the valid range of {name} is [0, {high:g}]")
    return float(value)
