"""vLLM, by its Completions route.

`return_token_ids` gives the ids of each chunk; vLLM has it since 0.10.2. Cached tokens are reported
if the server was started with `--enable-prompt-tokens-details`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from baleen.server.base import Capabilities, EngineState, Generation, Piece, Taker
from baleen.server.errors import UpstreamError
from baleen.server.upstreams.http_client import EngineClient
from baleen.server.upstreams.structural_tag import structural_tag

_PATH = "/v1/completions"
_ID_MARK = "token_id:"


class VllmUpstream:
    """One vLLM server."""

    def __init__(
        self, client: EngineClient, revision: str = "0731", model: str | None = None
    ) -> None:
        self._client, self._revision, self._model = client, revision, model

    async def capabilities(self) -> Capabilities:
        """Context and name of the model that it serves."""
        listed = await self._client.get("/v1/models")
        cards = listed.get("data") if isinstance(listed, dict) else None
        if not cards:
            raise UpstreamError(f"{self._client.base_url} lists no model")
        card = next((card for card in cards if card["id"] == self._model), cards[0])
        if self._model is None:
            self._model = card["id"]
        context = card.get("max_model_len")
        if not isinstance(context, int):
            raise UpstreamError(
                f"{self._client.base_url} does not say how long its context is",
                remedy="is it a vLLM server?",
            )
        version = await self._client.get("/version")
        number = version.get("version", "") if isinstance(version, dict) else ""
        name = f"vLLM {number}".strip()
        return Capabilities(
            name, context, calls_grammar=True, json_grammar=True, prompt_logprobs=True
        )

    def body(self, asked: Generation) -> dict[str, Any]:
        """The request."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(asked.ids),
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
        }
        if asked.seed is not None:
            body["seed"] = asked.seed
        if asked.min_tokens:
            body["min_tokens"] = asked.min_tokens
        if asked.top_logprobs is not None:
            body["logprobs"] = asked.top_logprobs
            body["return_tokens_as_token_ids"] = True
        if asked.constraint is not None:
            tag = structural_tag(asked.constraint, self._revision)
            if tag is not None:
                body["structured_outputs"] = {"structural_tag": tag}
        return body

    async def generate(self, asked: Generation, taker: Taker) -> None:
        """Continue the ids; the finish is told when the usage has come."""
        if self._model is None:
            await self.capabilities()
        if asked.scores_prompt:
            taker.take(Piece((), prompt_logprobs=await self._scores(asked)))
        finish: str | None = None
        goes_on = True

        def take(batch: list[dict[str, Any]]) -> bool:
            nonlocal finish, goes_on
            piece, finish = _piece(batch, finish)
            if piece.ids or piece.cached_tokens is not None:
                goes_on = taker.take(piece)
            # The usage comes behind the finish, and an answer that was heard out leaves the
            # connection fit for the next one.
            return goes_on or finish is not None

        await self._client.events(_PATH, self.body(asked), take, taker)
        if finish is None and goes_on:
            raise UpstreamError(f"{self._client.base_url} ended its stream without a reason")
        if finish is not None:
            taker.take(Piece((), (), finish))

    async def _scores(self, asked: Generation) -> list[float]:
        """Log-probabilities of the prompt's tokens, which are not to be had in a stream."""
        body = {
            "model": self._model,
            "prompt": list(asked.ids),
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
        }
        answer = await self._client.whole(_PATH, body)
        entries = answer["choices"][0]["prompt_logprobs"]
        return [
            math.nan if entry is None else float(entry[str(number)]["logprob"])
            for number, entry in zip(asked.ids, entries, strict=True)
        ]

    def state(self) -> EngineState:
        """Its own metrics say what it is doing."""
        return EngineState()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _piece(batch: list[dict[str, Any]], finish: str | None) -> tuple[Piece, str | None]:
    """What a batch of chunks adds."""
    ids: list[int] = []
    logprobs: list[float] = []
    top: list[list[tuple[int, float]]] = []
    cached: int | None = None
    for chunk in batch:
        usage = chunk.get("usage")
        if usage:
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        for choice in chunk.get("choices") or ():
            if choice.get("token_ids") is None and choice.get("text"):
                raise UpstreamError(
                    "the engine sends text and no token ids",
                    remedy="use vLLM 0.10.2 or newer, which has return_token_ids",
                )
            ids += choice.get("token_ids") or ()
            finish = choice.get("finish_reason") or finish
            found = choice.get("logprobs")
            if found:
                logprobs += found["token_logprobs"]
                top += [_others(entry) for entry in found.get("top_logprobs") or ()]
    if finish in ("abort", "error"):
        raise UpstreamError(f"the engine gave up ({finish})")
    return Piece(ids, logprobs, None, cached, top), finish


def _others(entry: Mapping[str, float] | None) -> list[tuple[int, float]]:
    return [
        (int(token.removeprefix(_ID_MARK)), logprob)
        for token, logprob in (entry or {}).items()
        if token.startswith(_ID_MARK)
    ]
