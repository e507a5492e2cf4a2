"""OpenAI Responses."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from baleen.protocol.dialects import responses
from baleen.server.doors.door import AnswerDoor, Call
from baleen.server.doors.responses_writer import ResponsesWriter
from baleen.server.errors import BadRequestError
from baleen.server.gateway import Gateway, new_id
from baleen.server.requests.ask import read_ask


class ResponsesDoor(AnswerDoor):
    """`POST /v1/responses`."""

    async def handle(self, call: Call) -> web.StreamResponse:
        """Answer a request."""
        body = self._with_history(call.body, call.scope)
        chat = responses.to_chat(body)
        chat["stop"] = call.body.get("stop")
        ask = self.scoped(read_ask(chat, self.gateway.config), call)
        prepared = await self.gateway.prepare(ask)
        answer = self.gateway.answer(prepared, new_id("resp_"))
        writer = ResponsesWriter(
            answer,
            ask.model or self.gateway.config.model_name,
            call.body,
            lambda output: _keep(self.gateway, call, body, answer.id, output),
        )
        return await self.respond(call, prepared, answer, writer)

    def _with_history(self, body: Mapping[str, Any], scope: str) -> dict[str, Any]:
        """A request with the items of the response that it goes on from in front of its own.

        Raises:
            BadRequestError: that response is not kept here.
        """
        previous = body.get("previous_response_id")
        own = {key: value for key, value in body.items() if key != "previous_response_id"}
        if not previous:
            return own
        # Half a surrogate pair is no key of the database, and of no response.
        name = str(previous).encode("utf-8", "replace").decode()
        items = self.gateway.responses.get(scope, name)
        if items is None:
            raise BadRequestError(
                f"Previous response with id '{name}' not found.",
                remedy="send the whole conversation as input, or store: true",
            )
        return {**own, "input": [*items, *_items(own.get("input"))]}


def _items(given: Any) -> list[Any]:
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return list(given or [])


def _keep(
    gateway: Gateway, call: Call, body: Mapping[str, Any], response_id: str, output: list[Any]
) -> None:
    """Keep a conversation for whoever goes on from it by id, unless the client forbids it."""
    if call.body.get("store") is False:
        return
    try:
        gateway.responses.put(call.scope, response_id, [*_items(body.get("input")), *output])
    except sqlite3.Error as error:
        gateway.note_store_error(error)
