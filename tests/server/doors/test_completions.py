"""Completions: tokens in, tokens out, with everything that training wants to know of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from baleen.server.upstreams.local import LocalUpstream
from baleen.server.upstreams.scripted import Line

from ..conftest import ASKED, Serve, Served

PATH = "/v1/completions"


async def complete(served: Served, **fields: Any) -> dict[str, Any]:
    response = await served.post(PATH, {"prompt": "Count.", **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def chunks_of(served: Served, **fields: Any) -> list[Any]:
    text = (await served.post(PATH, {"prompt": "Count.", "stream": True, **fields})).text
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]


async def test_ids_and_logprobs_come_back_beside_the_text(serve: Serve) -> None:
    served = await serve("One, two.")
    body = await complete(served, logprobs=0, return_token_ids=True, max_tokens=50)
    (choice,) = body["choices"]
    eos = served.gateway.vocabulary.eos
    assert choice["text"] == "One, two."
    assert choice["token_ids"][-1] == eos
    told = choice["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(choice["token_ids"])
    assert "".join(told["tokens"][:-1]) == "One, two."
    assert told["text_offset"][:2] == [0, len(told["tokens"][0])]
    again = await complete(served, prompt=choice["prompt_token_ids"], max_tokens=50)
    assert again["choices"][0]["text"] == "One, two."
    assert list(served.upstream.asked[0].ids) == list(served.upstream.asked[1].ids)


async def test_a_stream_says_what_the_whole_says(serve: Serve) -> None:
    served = await serve("Ein Kürbis, zwei.")
    fields = {"logprobs": 0, "return_token_ids": True, "echo": True, "max_tokens": 50}
    whole = (await complete(served, **fields))["choices"][0]
    *chunks, last = await chunks_of(served, **fields, stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(whole["token_ids"])
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert [n for choice in choices for n in choice["token_ids"]] == whole["token_ids"]
    for key in ("tokens", "token_logprobs", "text_offset"):
        assert [x for choice in choices for x in choice["logprobs"][key]] == whole["logprobs"][key]


async def test_an_echoed_prompt_is_scored(serve: Serve) -> None:
    served = await serve("One.")
    (choice,) = (await complete(served, echo=True, logprobs=0, return_token_ids=True))["choices"]
    assert choice["text"] == "Count.One."
    assert choice["logprobs"]["token_logprobs"][:2] == [None, -0.25]
    size = len(choice["prompt_token_ids"])
    assert len(choice["logprobs"]["tokens"]) == size + len(choice["token_ids"])
    scored = await complete(served, echo=True, logprobs=0, max_tokens=0)
    assert scored["choices"][0]["text"] == "Count."
    assert scored["choices"][0]["finish_reason"] == "length"
    assert scored["usage"]["completion_tokens"] == 0


async def test_nano_gives_a_text_the_log_probabilities_with_which_it_was_sampled(
    serve: Serve,
) -> None:
    served = await serve(LocalUpstream.load("nano", "0731"))
    fields = {"logprobs": 3, "return_token_ids": True, "temperature": 1.0, "seed": 5}
    (said,) = (await complete(served, max_tokens=24, **fields))["choices"]
    ids = [*said["prompt_token_ids"], *said["token_ids"]]
    (again,) = (
        await complete(served, prompt=ids, echo=True, logprobs=0, max_tokens=0, temperature=1.0)
    )["choices"]
    sampled = said["logprobs"]["token_logprobs"]
    assert again["logprobs"]["token_logprobs"][-len(sampled) :] == pytest.approx(sampled, abs=1e-4)
    for logprob, others in zip(sampled, said["logprobs"]["top_logprobs"], strict=True):
        assert 1 <= len(others) <= 3
        assert max(others.values()) >= logprob - 1e-6


async def test_the_text_ends_before_a_stop_string(serve: Serve) -> None:
    served = await serve("One, two, three.")
    for body in (
        await complete(served, stop=[", th"], max_tokens=50),
        await complete(served, stop=", th", max_tokens=50),
    ):
        assert body["choices"][0]["text"] == "One, two"
        assert body["choices"][0]["finish_reason"] == "stop"
    texts = [c["choices"][0]["text"] for c in await chunks_of(served, stop=", th", max_tokens=50)]
    assert "".join(texts) == "One, two"


async def test_an_engine_that_breaks_off_is_asked_to_go_on(serve: Serve) -> None:
    lines = iter([Line("One, two, ", breaks_after=3), Line("three.")])
    served = await serve(lambda _: next(lines))
    body = await complete(served, max_tokens=50, return_token_ids=True)
    first, again = served.upstream.asked
    assert list(again.ids[: len(first.ids)]) == list(first.ids)
    assert len(again.ids) == len(first.ids) + 3
    assert body["choices"][0]["text"].endswith("three.")


@pytest.mark.parametrize("prompt", ["", []])
async def test_an_empty_prompt_is_refused(serve: Serve, prompt: Any) -> None:
    served = await serve("One.")
    response = await served.post(PATH, {"prompt": prompt})
    assert response.status_code == 400
    assert "needs at least one token" in response.json()["error"]["message"]


async def test_completions_count_among_the_answers_at_once(serve: Serve) -> None:
    served = await serve(lambda _: Line("a " * 500, delay_s=0.02), max_running=1)
    body = {"prompt": "Count.", "stream": True, "max_tokens": 900}
    async with served.http.stream("POST", PATH, json=body) as response:
        lines = response.aiter_lines()
        await anext(lines)
        metrics = (await served.http.get("/metrics")).text
        assert 'vllm:num_requests_running{model_name="deepseek-v4"} 1' in metrics
        assert (await served.post("/v1/chat/completions", {"messages": ASKED})).status_code == 429
        assert (await served.post(PATH, {"prompt": "Hi"})).status_code == 429
        await lines.aclose()
    async with asyncio.timeout(5):
        while served.gateway.running:
            await asyncio.sleep(0.01)


async def test_an_error_behind_the_first_chunk_is_an_event(serve: Serve) -> None:
    served = await serve(lambda _: Line("a b c d", breaks_after=2), upstream_retries=0)
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as http:
        text = (await http.post(PATH, json={"prompt": "Hi", "stream": True})).text
    *_, last = (json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {"))
    assert last["error"]["status"] == 502
    assert "broke off" in last["error"]["message"]
