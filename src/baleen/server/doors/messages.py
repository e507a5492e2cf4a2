"""Anthropic Messages."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from baleen.protocol.dialects import anthropic
from baleen.protocol.errors import expect_object
from baleen.protocol.events import (
    ArgumentsDelta,
    CallStart,
    ContentDelta,
    Event,
    ReasoningDelta,
)
from baleen.server.answers.answer import Answer
from baleen.server.doors.door import AnswerDoor, Call
from baleen.server.doors.report import report_of
from baleen.server.gateway import new_id
from baleen.server.requests.ask import Ask, read_ask
from baleen.server.wire.sse import quote

_THINKING = '{"type":"thinking","thinking":"","signature":""}'
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class MessagesDoor(AnswerDoor):
    """`POST /v1/messages` and `/v1/messages/count_tokens`."""

    silence = 'event: ping\ndata: {"type":"ping"}\n\n'

    async def handle(self, call: Call) -> web.StreamResponse:
        """Answer a request."""
        ask = self._read(call)
        prepared = await self.gateway.prepare(ask)
        answer = self.gateway.answer(prepared, new_id("msg_"))
        writer = MessagesWriter(answer, ask.model or self.gateway.config.model_name)
        return await self.respond(call, prepared, answer, writer)

    async def count(self, call: Call) -> web.StreamResponse:
        """How many tokens a request's prompt has."""
        prepared = await self.gateway.prepare(self._read(call))
        return web.json_response({"input_tokens": len(prepared.ids)})

    def _read(self, call: Call) -> Ask:
        chat = anthropic.to_chat(call.body)
        thinking = expect_object(call.body.get("thinking"), "thinking")
        if thinking.get("budget_tokens") is not None:
            chat["thinking_token_budget"] = thinking["budget_tokens"]
        return self.scoped(read_ask(chat, self.gateway.config, clamps=True), call)

    def error_body(self, status: int, error: dict[str, Any]) -> dict[str, Any]:
        """An error as Messages has it."""
        kind = _ERROR_TYPES.get(status, "api_error")
        return {"type": "error", "error": {**error, "type": kind}}


class MessagesWriter:
    """Writes one answer as blocks: thinking, text, tool uses."""

    def __init__(self, answer: Answer, model: str) -> None:
        self._answer, self._model = answer, model
        self._index = -1
        self._open: str | None = None
        """Kind of the block that is open."""

    # --- streaming -----------------------------------------------------------------------------

    def begin(self) -> str:
        """The message's head, and its first block while thinking."""
        message: dict[str, Any] = {
            "id": self._answer.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        started = _event("message_start", {"message": message})
        thinks = self._answer.prepared.prompt.thinking
        return started + (self._enter("thinking", _THINKING) if thinks else "")

    def feed(self, events: list[Event]) -> str:
        """Block events."""
        parts: list[str] = []
        for event in events:
            if isinstance(event, ReasoningDelta):
                parts.append(self._enter("thinking", _THINKING))
                parts.append(self._delta("thinking_delta", "thinking", event.text))
            elif isinstance(event, ContentDelta):
                parts.append(self._enter("text", '{"type":"text","text":""}'))
                parts.append(self._delta("text_delta", "text", event.text))
            elif isinstance(event, CallStart):
                parts.append(self._leave())
                block = (
                    f'{{"type":"tool_use","id":{quote(event.id)},"name":{quote(event.name)},'
                    '"input":{}}'
                )
                parts.append(self._enter("tool_use", block))
            elif isinstance(event, ArgumentsDelta):
                parts.append(self._delta("input_json_delta", "partial_json", event.text))
        return "".join(parts)

    def _enter(self, kind: str, block: str) -> str:
        """Open a block unless one of its kind is open."""
        if self._open == kind:
            return ""
        closed = self._leave()
        self._index += 1
        self._open = kind
        start = (
            "event: content_block_start\n"
            f'data: {{"type":"content_block_start","index":{self._index},'
            f'"content_block":{block}}}\n\n'
        )
        ping = _event("ping", {}) if self._index == 0 else ""
        return f"{closed}{start}{ping}"

    def _leave(self) -> str:
        """Close the open block."""
        kind, self._open = self._open, None
        if kind is None:
            return ""
        signed = self._delta("signature_delta", "signature", self._answer.id)
        return (signed if kind == "thinking" else "") + _event(
            "content_block_stop", {"index": self._index}
        )

    def _delta(self, kind: str, field: str, text: str) -> str:
        return (
            "event: content_block_delta\n"
            f'data: {{"type":"content_block_delta","index":{self._index},'
            f'"delta":{{"type":"{kind}","{field}":{quote(text)}}}}}\n\n'
        )

    def finish(self) -> str:
        """Stop reason and usage."""
        delta = {
            "delta": {
                "stop_reason": self._stop_reason(),
                "stop_sequence": self._answer.stop_string,
            },
            "usage": self._usage(),
            "baleen": report_of(self._answer),
        }
        return self._leave() + _event("message_delta", delta) + _event("message_stop", {})

    def failed(self, status: int, error: dict[str, Any]) -> str:
        """An error event."""
        kind = _ERROR_TYPES.get(status, "api_error")
        return _event("error", {"error": {**error, "type": kind}})

    def _stop_reason(self) -> str:
        if self._answer.stop_string is not None:
            return "stop_sequence"
        reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
        return reasons.get(self._answer.finish_reason, self._answer.finish_reason)

    def _usage(self) -> dict[str, Any]:
        answer = self._answer
        return {
            "input_tokens": len(answer.prepared.ids) - answer.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": answer.num_cached_tokens,
            "output_tokens": len(answer.sampled),
            "service_tier": "standard",
        }

    # --- whole ---------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The message object."""
        answer, turn = self._answer, self._answer.turn
        blocks: list[dict[str, Any]] = []
        if turn.reasoning:
            blocks.append({"type": "thinking", "thinking": turn.reasoning, "signature": answer.id})
        if answer.content_cut:
            blocks.append({"type": "text", "text": answer.content_cut})
        for call in turn.tool_calls:
            given = json.loads(call.arguments)
            value = given if isinstance(given, dict) else {"arguments": given}
            blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": value})
        return {
            "id": answer.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            "stop_reason": self._stop_reason(),
            "stop_sequence": answer.stop_string,
            "usage": self._usage(),
            "baleen": report_of(answer),
        }


def _event(name: str, fields: dict[str, Any]) -> str:
    data = json.dumps({"type": name, **fields}, ensure_ascii=False)
    return f"event: {name}\ndata: {data}\n\n"
