"""Tokenising for clients: what a request would cost, and what ids stand for."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from baleen.protocol.tokenizing import encoder_for
from baleen.server.doors.door import AnswerDoor, Call
from baleen.server.errors import BadRequestError
from baleen.server.requests.aside import aside
from baleen.server.requests.ask import read_ask
from baleen.server.requests.compaction import advise


class TokensDoor(AnswerDoor):
    """`POST /tokenize` and `/detokenize`."""

    async def tokenize(self, call: Call) -> web.StreamResponse:
        """Ids of a text (`prompt`), or of a whole request (`messages`)."""
        context = (await self.gateway.capabilities()).context_tokens
        encoder = encoder_for(self.gateway.tokenizer)
        more: dict[str, Any] = {}
        if "messages" in call.body:
            ask = self.scoped(read_ask(call.body, self.gateway.config), call)
            prepared = await self.gateway.prepare(ask)
            ids = list(prepared.ids)
            advice = await aside(
                10 * len(ids), lambda: advise(ask.messages, len(ids), context, encoder)
            )
            more = {"compaction": advice._asdict()}
        else:
            text = call.body.get("prompt", call.body.get("content"))
            if not isinstance(text, str):
                raise BadRequestError("`prompt` must be a string, or send `messages`")
            ids = await aside(len(text), lambda: encoder.encode_text(text))
        found = {
            "count": len(ids),
            "max_model_len": context,
            "tokens": ids,
            "context_remaining": max(0, context - len(ids)),
            **more,
        }
        return web.json_response(found)

    async def detokenize(self, call: Call) -> web.StreamResponse:
        """Text of ids (`tokens`), special tokens spelled out."""
        ids = call.body.get("tokens")
        size = self.gateway.tokenizer.get_vocab_size()
        if not isinstance(ids, list) or not all(_is_id(number, size) for number in ids):
            raise BadRequestError("`tokens` must be a list of token ids of this model")
        segments = self.gateway.vocabulary.segments_of(ids)
        return web.json_response({"prompt": "".join(text for text, _ in segments)})


def _is_id(number: Any, size: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < size
