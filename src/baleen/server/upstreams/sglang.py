"""SGLang, by its own generate route.

Its stream repeats all ids so far unless the server was started to stream increments; both are read,
told apart by `completion_tokens`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from baleen.server.base import Capabilities, EngineState, Generation, Piece, Taker
from baleen.server.errors import UpstreamError
from baleen.server.upstreams.http_client import EngineClient
from baleen.server.upstreams.structural_tag import structural_tag

_PATH = "/generate"


class SglangUpstream:
    """One SGLang server."""

    def __init__(self, client: EngineClient, revision: str = "0731") -> None:
        self._client, self._revision = client, revision

    async def capabilities(self) -> Capabilities:
        """Context and version of the server."""
        info = await self._client.get("/get_server_info")
        if not isinstance(info, dict):
            raise UpstreamError(f"{self._client.base_url} does not answer like an SGLang server")
        states = info.get("internal_states") or [{}]
        lengths = (info.get("context_length"), info.get("max_total_num_tokens"))
        context = next((n for n in (*lengths, states[0].get("context_length")) if n), None)
        if context is None:
            models = await self._client.get("/v1/models")
            context = models["data"][0].get("max_model_len") if models else None
        if context is None:
            raise UpstreamError(f"{self._client.base_url} does not say how long its context is")
        name = f"SGLang {info.get('version', '')}".strip()
        return Capabilities(
            name, int(context), calls_grammar=True, json_grammar=True, prompt_logprobs=True
        )

    def body(self, asked: Generation) -> dict[str, Any]:
        """The request."""
        sampling: dict[str, Any] = {
            "max_new_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "skip_special_tokens": False,
        }
        if asked.seed is not None:
            sampling["sampling_seed"] = asked.seed
        if asked.min_tokens:
            sampling["min_new_tokens"] = asked.min_tokens
        if asked.constraint is not None:
            tag = structural_tag(asked.constraint, self._revision)
            if tag is not None:
                sampling["structural_tag"] = tag
        body: dict[str, Any] = {
            "input_ids": list(asked.ids),
            "sampling_params": sampling,
            "stream": True,
        }
        if asked.request_id:
            body["rid"] = f"{asked.request_id}-{len(asked.ids)}"
        if asked.scores_prompt:
            body["logprob_start_len"] = 0
        if asked.top_logprobs is not None:
            body["return_logprob"] = True
            body["top_logprobs_num"] = asked.top_logprobs
        return body

    async def generate(self, asked: Generation, taker: Taker) -> None:
        """Continue the ids."""
        seen, is_over = 0, False

        def take(batch: list[dict[str, Any]]) -> bool:
            nonlocal seen, is_over
            for event in batch:
                piece = _piece(event, seen)
                seen += len(piece.ids)
                is_over = not taker.take(piece) or piece.finish is not None
                if is_over:
                    break
            return not is_over

        await self._client.events(_PATH, self.body(asked), take, taker)
        if not is_over:
            raise UpstreamError(f"{self._client.base_url} ended its stream without a reason")

    def state(self) -> EngineState:
        """Its own metrics say what it is doing."""
        return EngineState()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _piece(event: dict[str, Any], seen: int) -> Piece:
    """What an event adds to the ids seen so far."""
    meta = event["meta_info"]
    ids = event.get("output_ids")
    if ids is None:
        raise UpstreamError(
            "the engine sends text and no token ids", remedy="use SGLang 0.5 or newer"
        )
    total = int(meta["completion_tokens"])
    new = total - seen
    if not 0 <= new <= len(ids):
        raise UpstreamError(f"the engine sent {len(ids)} ids and says there are {new} new ones")
    reason = meta.get("finish_reason")
    kind = reason.get("type") if isinstance(reason, dict) else reason
    if kind == "abort":
        raise UpstreamError(f"the engine gave up: {json.dumps(reason)[:300]}")
    logprobs = meta.get("output_token_logprobs") or []
    top = meta.get("output_top_logprobs") or []
    return Piece(
        ids[len(ids) - new :],
        [entry[0] for entry in logprobs[len(logprobs) - new :]] if logprobs else (),
        kind,
        meta.get("cached_tokens"),
        [[(o[1], o[0]) for o in entry or ()] for entry in top[len(top) - new :]] if top else (),
        [math.nan if entry[0] is None else entry[0] for entry in meta["input_token_logprobs"]]
        if seen == 0 and meta.get("input_token_logprobs")
        else (),
    )
