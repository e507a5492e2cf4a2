"""Chat Completions."""

from __future__ import annotations

import json
import time
from typing import Any

from aiohttp import web

from baleen.protocol.events import (
    ArgumentsDelta,
    CallStart,
    ContentDelta,
    Event,
    ReasoningDelta,
)
from baleen.server.answers.answer import Answer
from baleen.server.doors.door import AnswerDoor, Call
from baleen.server.doors.logprobs import LogprobWriter
from baleen.server.doors.report import report_of
from baleen.server.gateway import new_id
from baleen.server.requests.ask import read_ask
from baleen.server.wire.sse import quote

_DONE = "data: [DONE]\n\n"


class ChatDoor(AnswerDoor):
    """`POST /v1/chat/completions`."""

    async def handle(self, call: Call) -> web.StreamResponse:
        """Answer a request."""
        ask = self.scoped(read_ask(call.body, self.gateway.config), call)
        prepared = await self.gateway.prepare(ask)
        answer = self.gateway.answer(prepared, new_id("chatcmpl-"))
        writer = ChatWriter(answer, ask.model or self.gateway.config.model_name, self.gateway)
        return await self.respond(call, prepared, answer, writer)


def usage_of(answer: Answer) -> dict[str, Any]:
    """Token counts as Chat Completions has them."""
    num_prompt, num_sampled = len(answer.prepared.ids), len(answer.sampled)
    cached = answer.num_cached_tokens
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_sampled,
        "total_tokens": num_prompt + num_sampled,
        "prompt_tokens_details": {"cached_tokens": cached},
        "prompt_cache_hit_tokens": cached,
        "prompt_cache_miss_tokens": num_prompt - cached,
        "completion_tokens_details": {"reasoning_tokens": answer.num_reasoning_tokens},
    }


class ChatWriter:
    """Writes one answer; most of a chunk never changes and is made once."""

    def __init__(self, answer: Answer, model: str, gateway: Any) -> None:
        self._answer, self._model = answer, model
        self._created = int(time.time())
        ask = answer.prepared.ask
        self._twice = gateway.config.emits_reasoning_twice
        self._logprobs = (
            LogprobWriter(answer, gateway.vocabulary) if ask.top_logprobs is not None else None
        )
        envelope = (
            f'"id":{quote(answer.id)},"object":"chat.completion.chunk","created":{self._created},'
            f'"model":{quote(model)},"system_fingerprint":null'
        )
        self._head = f'data: {{{envelope},"choices":[{{"index":0,"delta":{{'
        self._thinks = answer.prepared.prompt.thinking
        usage = ',"usage":null' if ask.includes_usage else ""
        self._tail = f'}},"logprobs":null,"finish_reason":null}}]{usage}}}\n\n'
        self._beside_content = ',"reasoning_content":null' if self._thinks else ""
        self._envelope = envelope

    # --- streaming -----------------------------------------------------------------------------

    def begin(self) -> str:
        """The role."""
        content = '"content":null,"reasoning_content":""' if self._thinks else '"content":""'
        return f'{self._head}"role":"assistant",{content}{self._tail}'

    def feed(self, events: list[Event]) -> str:
        """A chunk per event."""
        tail = self._tail
        if self._logprobs is not None:
            logprobs = self._logprobs.new()
            tail = tail.replace('"logprobs":null', f'"logprobs":{logprobs}', 1)
        if len(events) == 1 and (delta := self._delta(events[0])):
            return f"{self._head}{delta}{tail}"
        chunks: list[str] = []
        for event in events:
            if delta := self._delta(event):
                chunks.append(f"{self._head}{delta}{tail}")
                tail = self._tail
        return "".join(chunks)

    def _delta(self, event: Event) -> str:
        kind = type(event)
        if kind is ContentDelta:
            return f'"content":{quote(event.text)}{self._beside_content}'  # type: ignore[union-attr]
        if kind is ReasoningDelta:
            text = quote(event.text)  # type: ignore[union-attr]
            twice = f',"reasoning":{text}' if self._twice else ""
            return f'"content":null,"reasoning_content":{text}{twice}'
        if isinstance(event, ArgumentsDelta):
            return (
                f'"tool_calls":[{{"index":{event.index},"function":'
                f'{{"arguments":{quote(event.text)}}}}}]'
            )
        if isinstance(event, CallStart):
            return (
                f'"tool_calls":[{{"index":{event.index},"id":{quote(event.id)},"type":"function",'
                f'"function":{{"name":{quote(event.name)},"arguments":""}}}}]'
            )
        return ""

    def finish(self) -> str:
        """Finish reason, usage, and the end of the stream."""
        answer = self._answer
        usage = json.dumps(usage_of(answer))
        logprobs = self._logprobs.new() if self._logprobs is not None else "null"
        choice = (
            f'{{"index":0,"delta":{{"content":""{self._beside_content}}},'
            f'"logprobs":{logprobs},"finish_reason":{quote(answer.finish_reason)}'
            f"{self._extension()}}}"
        )
        if not answer.prepared.ask.includes_usage:
            return f'data: {{{self._envelope},"choices":[{choice}],"usage":{usage}}}\n\n{_DONE}'
        # Clients add up what they find, so it stands in one place.
        return (
            f'data: {{{self._envelope},"choices":[{choice}],"usage":null}}\n\n'
            f'data: {{{self._envelope},"choices":[],"usage":{usage}}}\n\n{_DONE}'
        )

    def _extension(self) -> str:
        extension = {"baleen": report_of(self._answer), **self._ids()}
        return "," + json.dumps(extension, ensure_ascii=False)[1:-1]

    def _ids(self) -> dict[str, Any]:
        answer = self._answer
        if not answer.prepared.ask.returns_ids:
            return {}
        return {"prompt_token_ids": list(answer.prepared.ids), "token_ids": answer.sampled}

    def failed(self, status: int, error: dict[str, Any]) -> str:
        """An error event; the stream ends without a finish reason."""
        return f"data: {json.dumps({'error': {**error, 'status': status}})}\n\n"

    # --- whole ---------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The response object."""
        answer, turn = self._answer, self._answer.turn
        message: dict[str, Any] = {"role": "assistant", "content": answer.content_cut}
        if answer.prepared.prompt.thinking:
            message["reasoning_content"] = turn.reasoning
            if self._twice:
                message["reasoning"] = turn.reasoning
        if turn.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in turn.tool_calls
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs.all() if self._logprobs is not None else None,
            "finish_reason": answer.finish_reason,
            "baleen": report_of(answer),
            **self._ids(),
        }
        return {
            "id": answer.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": None,
            "choices": [choice],
            "usage": usage_of(answer),
        }
