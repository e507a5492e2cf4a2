"""Any model behind an OpenAI-compatible Chat Completions endpoint.

Such an endpoint takes messages, not tokens, so a turn that was cut off by a crash cannot be
continued: it is asked for anew. Finished turns are on record and never asked for again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from baleen.agent.base import Turn, Watch
from baleen.agent.delta import TurnBuilder
from baleen.agent.journal import Journal
from baleen.agent.sse import json_events
from baleen.agent.timer import Timer
from baleen.errors import EndpointError

if TYPE_CHECKING:
    import httpx

_RETRY_STATUS = frozenset({429, 502, 503, 504})
"""Refusals of a request that was not worked on; every other answer is final."""
_WAITS_S = (0.5, 1.0, 2.0, 4.0)
_MAX_WAIT_S = 30.0
_CONNECT_TIMEOUT_S = 10.0
_SILENCE_TIMEOUT_S = 300.0
"""A long prompt may be computed for minutes before the first token."""


class OpenAIEndpoint:
    """One model of one endpoint."""

    def __init__(
        self,
        base_url: str,
        name: str,
        *,
        tools: Sequence[Mapping[str, Any]],
        temperature: float | None = None,
        seed: int | None = None,
        api_key: str | None = None,
    ) -> None:
        self.name = name
        self._base_url = base_url
        self._tools = list(tools)
        self._options = {
            name: value
            for name, value in (("temperature", temperature), ("seed", seed))
            if value is not None
        }
        self._client = _client(base_url, api_key)
        self._num_retries = 0

    @classmethod
    async def connect(
        cls,
        base_url: str,
        name: str | None,
        *,
        tools: Sequence[Mapping[str, Any]],
        temperature: float | None = None,
        seed: int | None = None,
    ) -> OpenAIEndpoint:
        """Reach an endpoint; without a name, take the only model that it lists.

        `OPENAI_API_KEY` is sent when it is set.

        Raises:
            EndpointError: it cannot be reached, or it lists several models.
        """
        base_url = base_url.rstrip("/")
        api_key = os.environ.get("OPENAI_API_KEY")
        if name is None:
            name = await _only_model(base_url, api_key)
        return cls(base_url, name, tools=tools, temperature=temperature, seed=seed, api_key=api_key)

    async def sample(self, journal: Journal, max_tokens: int, watch: Watch) -> Turn:
        """Ask for the next turn and stream it."""
        return await self.converse(journal.history.messages(), max_tokens, watch)

    async def converse(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int | None,
        watch: Watch,
        **fields: Any,
    ) -> Turn:
        """The turn that follows some messages; ``fields`` go into the request as they are.

        Raises:
            EndpointError: the model could not be reached or answered something unusable.
        """
        import httpx

        body = {
            "model": self.name,
            "messages": messages,
            **({"tools": self._tools} if self._tools else {}),
            **({"max_tokens": max_tokens} if max_tokens is not None else {}),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._options,
            **fields,
        }
        timer = Timer()
        response = await self._send(body)
        builder = TurnBuilder(watch)
        try:
            async for event in json_events(response.aiter_lines()):
                timer.first()
                builder.feed(event)
        except httpx.HTTPError as error:
            raise EndpointError(
                f"{self._base_url} broke off in mid-answer: {_reason(error)}",
                remedy="run again with --resume; the turn will be asked for anew",
            ) from error
        finally:
            await response.aclose()
        return builder.finish(timer)

    async def context_tokens(self) -> int | None:
        """How long the model's context is, by vLLM's field; None where the server does not say."""
        import httpx

        with suppress(httpx.HTTPError, ValueError, TypeError, KeyError, AttributeError):
            response = await self._client.get("models")
            for card in response.json()["data"]:
                if card["id"] == self.name and isinstance(card.get("max_model_len"), int):
                    return int(card["max_model_len"])
        return None

    def facts(self) -> Mapping[str, Any]:
        """Where the model is and how often it had to be asked twice."""
        return {"base_url": self._base_url, "retries": self._num_retries}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _send(self, body: Mapping[str, Any]) -> httpx.Response:
        """Send a request; retry only what certainly was not worked on."""
        import httpx

        for wait_s in (*_WAITS_S, None):
            try:
                request = self._client.build_request("POST", "chat/completions", json=body)
                response = await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                failure = _unreachable(self._base_url, error)
            except httpx.HTTPError as error:
                raise EndpointError(
                    f"{self._base_url} did not answer: {_reason(error)}",
                    remedy="look at the server's log, then run again with --resume",
                ) from error
            else:
                if response.status_code == 200:
                    return response
                failure = await _refusal(self._base_url, self.name, response)
                if response.status_code not in _RETRY_STATUS:
                    raise failure
                wait_s = wait_s and _retry_after_s(response, wait_s)
            if wait_s is None:
                raise failure
            self._num_retries += 1
            await asyncio.sleep(wait_s)
        raise AssertionError("the last wait is None, which raises")


def _client(base_url: str, api_key: str | None) -> httpx.AsyncClient:
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(_SILENCE_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    try:
        return httpx.AsyncClient(base_url=base_url, headers=headers, timeout=timeout)
    except (httpx.InvalidURL, ValueError) as error:
        raise EndpointError(
            f"{base_url!r} is no URL: {error}", remedy="give http://HOST:PORT/v1"
        ) from error


async def _only_model(base_url: str, api_key: str | None) -> str:
    import httpx

    remedy = "name one with --model-name"
    async with _client(base_url, api_key) as client:
        try:
            response = await client.get("models")
        except httpx.HTTPError as error:
            raise _unreachable(base_url, error) from error
        if response.status_code != 200:
            raise await _refusal(base_url, "", response)
        with suppress(ValueError, TypeError, KeyError):
            names = [str(model["id"]) for model in response.json()["data"]]
            if len(names) == 1:
                return names[0]
            remedy = f"name one of them with --model-name: {', '.join(names[:20])}"
    raise EndpointError(f"{base_url} does not list exactly one model", remedy=remedy)


async def _refusal(base_url: str, name: str, response: httpx.Response) -> EndpointError:
    text = (await response.aread()).decode(errors="replace").strip()
    await response.aclose()
    remedy = {
        401: "set OPENAI_API_KEY",
        403: "set OPENAI_API_KEY",
        404: f"check the base URL (it usually ends in /v1) and the model name {name!r}",
    }.get(response.status_code, "the endpoint's own message says what it wants")
    return EndpointError(
        f"{base_url} answered {response.status_code}: {text[:500] or '(no text)'}", remedy=remedy
    )


def _unreachable(base_url: str, error: Exception) -> EndpointError:
    return EndpointError(
        f"{base_url} cannot be reached: {_reason(error)}", remedy="is the server running?"
    )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after_s(response: httpx.Response, default_s: float) -> float:
    with suppress(ValueError):
        return min(float(response.headers.get("retry-after", "")), _MAX_WAIT_S)
    return default_s
