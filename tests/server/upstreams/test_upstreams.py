"""Engines over HTTP: the exact requests, and their streams as recorded or documented.

`data/llama_server_11434.json` was recorded from a llama-server of that build with a small model of
random weights and the bundled tokenizer. vLLM and SGLang do not run here; their streams are written
after the sources of vLLM 0.33 and SGLang 0.5.23. A real llama-server is in `test_llama_server.py`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tokenizers import Tokenizer

from baleen.protocol.grammar import AnswerForm
from baleen.server.base import Constraint, Generation, Piece
from baleen.server.errors import UpstreamError, UpstreamRefusalError, UpstreamStallError
from baleen.server.room import Room
from baleen.server.upstreams.http_client import EngineClient
from baleen.server.upstreams.llama import LlamaUpstream
from baleen.server.upstreams.opening import open_upstream
from baleen.server.upstreams.sglang import SglangUpstream
from baleen.server.upstreams.vllm import VllmUpstream

from ..conftest import WEATHER

RECORDED = json.loads((Path(__file__).parent / "data/llama_server_11434.json").read_text())
PROMPT = RECORDED["prompt"]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Engine = Callable[[Handler], Awaitable[EngineClient]]


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An engine that answers as a handler says."""
    runners: list[web.ServerRunner] = []
    clients: list[EngineClient] = []

    async def start(handler: Handler) -> EngineClient:
        runner = web.ServerRunner(web.Server(handler, handler_cancellation=True))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        port = runner.addresses[0][1]
        clients.append(EngineClient(f"http://127.0.0.1:{port}/v1", stall_timeout_s=0.5))
        return clients[-1]

    yield start
    for client in clients:
        await client.close()
    for runner in runners:
        await runner.cleanup()


def replaying(responses: list[Any], seen: list[Any]) -> Handler:
    """Answers requests in turn; a list of events is a stream."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(await request.json())
        found = responses.pop(0)
        if isinstance(found, list):
            found = "".join(f"data: {json.dumps(event)}\n\n" for event in found)
        return web.Response(text=found)

    return handle


class Taking:
    """Takes everything."""

    def __init__(self) -> None:
        self.room = Room()
        self.pieces: list[Piece] = []

    def take(self, piece: Piece) -> bool:
        self.pieces.append(piece)
        return True


async def pieces_of(upstream: Any, **fields: Any) -> list[Piece]:
    taker = Taking()
    await upstream.generate(Generation(PROMPT, **fields), taker)
    return taker.pieces


def joined(pieces: list[Piece]) -> tuple[list[int], str | None]:
    return [number for piece in pieces for number in piece.ids], pieces[-1].finish


# --- llama-server --------------------------------------------------------------------------------


async def test_llama_server_is_asked_as_recorded(engine: Engine, tokenizer: Tokenizer) -> None:
    seen: list[Any] = []
    case = RECORDED["plain"]
    client = await engine(replaying([case["response"]], seen))
    pieces = await pieces_of(LlamaUpstream(client, tokenizer), max_tokens=12, temperature=0.0)
    assert seen == [case["request"]]
    ids, finish = joined(pieces)
    assert (len(ids), finish) == (12, "length")
    assert all(piece.finish is None for piece in pieces[:-1])


async def test_ids_that_llama_server_withholds_are_recovered(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    case = RECORDED["split_character"]
    assert case["response"].count('"tokens_predicted"') < 9, "ids are missing from the stream"
    client = await engine(replaying([case["response"]], []))
    ids, finish = joined(await pieces_of(LlamaUpstream(client, tokenizer), max_tokens=12))
    assert tokenizer.decode(ids) == "é漢éx"
    assert ids == [*tokenizer.encode("é漢éx").ids, 1]
    assert finish == "stop"


async def test_ids_that_cannot_be_recovered_are_asked_for_unstreamed(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    stream = [
        {"index": 0, "content": "a", "tokens": [82], "stop": False, "tokens_predicted": 1},
        {"index": 0, "content": "\ufffd", "tokens": [120], "stop": False, "tokens_predicted": 4},
    ]
    whole = json.dumps({"tokens": [200, 201, 1], "stop_type": "eos", "timings/cache_n": 6})
    seen: list[Any] = []
    client = await engine(replaying([stream, whole], seen))
    ids, finish = joined(await pieces_of(LlamaUpstream(client, tokenizer), max_tokens=12))
    assert (ids, finish) == ([82, 200, 201, 1], "stop")
    assert seen[1]["prompt"] == [*PROMPT, 82]
    assert (seen[1]["stream"], seen[1]["n_predict"]) == (False, 11)


async def test_llama_server_gives_log_probabilities_unstreamed(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    case, seen = RECORDED["logprobs"], []
    client = await engine(replaying([case["response"]], seen))
    (piece,) = await pieces_of(
        LlamaUpstream(client, tokenizer), max_tokens=4, temperature=0.0, top_logprobs=2
    )
    assert seen == [case["request"]]
    assert len(piece.ids) == len(piece.logprobs) == len(piece.top) == 4
    assert all(others[0] == (number, logprob) for number, logprob, others in
               zip(piece.ids, piece.logprobs, piece.top, strict=True))  # fmt: skip


async def test_a_minimum_length_is_a_first_request_that_may_not_end(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    case, seen = RECORDED["min_tokens"], []
    client = await engine(replaying([case["response"], RECORDED["plain"]["response"]], seen))
    upstream = LlamaUpstream(client, tokenizer)
    ids, finish = joined(await pieces_of(upstream, max_tokens=6, temperature=0.0, min_tokens=2))
    assert seen[0] == case["request"]
    assert seen[0]["logit_bias"] == [[1, False]]
    assert seen[1]["prompt"] == [*PROMPT, *ids[:2]]
    assert finish == "length"


async def test_llama_server_is_recognised_by_its_properties(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response(RECORDED["props"], status=200 if request.path == "/props" else 404)

    upstream = await open_upstream(await engine(handle), tokenizer)
    assert isinstance(upstream, LlamaUpstream)
    assert (await upstream.capabilities()).context_tokens == 8192


# --- vLLM ----------------------------------------------------------------------------------------


async def test_vllm_is_asked_for_ids_and_gives_them(engine: Engine) -> None:
    seen: list[Any] = []
    head = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": "v4"}

    def chunk(ids: list[int], finish: str | None, usage: Any = None) -> dict[str, Any]:
        logprobs = {
            "token_logprobs": [-0.25] * len(ids),
            "top_logprobs": [{f"token_id:{n}": -0.25, "token_id:9": -2.0} for n in ids],
            "tokens": [f"token_id:{n}" for n in ids],
            "text_offset": [0] * len(ids),
        }
        choice = {
            "index": 0,
            "text": "x",
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": None,
            "token_ids": ids,
            "prompt_token_ids": None,
        }
        return {**head, "choices": [choice], "usage": usage}

    usage = {
        "prompt_tokens": 6,
        "completion_tokens": 3,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    stream = [chunk([82], None), chunk([83, 1], "stop"), {**head, "choices": [], "usage": usage}]
    client = await engine(replaying([stream], seen))
    pieces = await pieces_of(
        VllmUpstream(client, model="v4"), max_tokens=8, seed=7, min_tokens=1, top_logprobs=1,
        temperature=0.5, top_p=0.9,
    )  # fmt: skip
    assert joined(pieces) == ([82, 83, 1], "stop")
    assert pieces[0].logprobs[0] == -0.25
    assert pieces[0].top[0] == [(82, -0.25), (9, -2.0)]
    assert [p.cached_tokens for p in pieces if p.cached_tokens is not None] == [4]
    assert seen == [
        {
            "model": "v4",
            "prompt": PROMPT,
            "max_tokens": 8,
            "temperature": 0.5,
            "top_p": 0.9,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "seed": 7,
            "min_tokens": 1,
            "logprobs": 1,
            "return_tokens_as_token_ids": True,
        }
    ]


async def test_an_engine_that_sends_no_ids_is_named(engine: Engine) -> None:
    stream = [{"choices": [{"index": 0, "text": "hello", "finish_reason": None}]}]
    client = await engine(replaying([stream], []))
    with pytest.raises(UpstreamError, match="no token ids"):
        await pieces_of(VllmUpstream(client, model="v4"), max_tokens=8)


async def test_vllm_holds_calls_to_their_schemas_by_a_structural_tag(engine: Engine) -> None:
    upstream = VllmUpstream(await engine(replaying([], [])), model="v4")
    asked = Generation(PROMPT, 8, constraint=Constraint(tools=[WEATHER], thinking=True))
    tag = json.loads(upstream.body(asked)["structured_outputs"]["structural_tag"])["format"]
    reasoning, calls = tag["elements"]
    assert reasoning["end"] == "</think>"
    assert calls["type"] == "triggered_tags"
    assert calls["triggers"] == ["<｜DSML｜"]
    assert "get_weather" in calls["tags"][0]["content"]["grammar"]
    wanted = Constraint(form=AnswerForm({"type": "object"}), thinking=True)
    body = upstream.body(Generation(PROMPT, 8, constraint=wanted))
    tag = json.loads(body["structured_outputs"]["structural_tag"])["format"]
    assert tag["elements"][1] == {"type": "json_schema", "json_schema": {"type": "object"}}


async def test_llama_server_is_held_to_a_schema_once_the_reasoning_is_over(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    close = tokenizer.token_to_id("</think>")

    def said(number: int, count: int) -> dict[str, Any]:
        return {"content": "", "tokens": [number], "stop": False, "tokens_predicted": count}

    end = {"stop_type": "eos", "tokens_evaluated": 9}
    seen: list[Any] = []
    streams = [[said(82, 1), said(close, 2), said(83, 3)], [said(94, 1), said(1, 2), end]]
    client = await engine(replaying(list(streams), seen))
    wanted = Constraint(form=AnswerForm({"type": "object"}), thinking=True)
    upstream = LlamaUpstream(client, tokenizer)
    pieces = await pieces_of(upstream, max_tokens=9, constraint=wanted)
    assert joined(pieces) == ([82, close, 94, 1], "stop")
    assert "json_schema" not in seen[0]
    assert seen[1]["json_schema"] == {"type": "object"}
    assert seen[1]["prompt"] == [*PROMPT, 82, close]


# --- SGLang --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_cumulative", [True, False])
async def test_sglang_streams_are_read_whether_they_repeat_or_not(
    engine: Engine, *, is_cumulative: bool
) -> None:
    ids, stream = [82, 83, 84, 1], []
    for end in (1, 3, 4):
        start = 0 if is_cumulative else {1: 0, 3: 1, 4: 3}[end]
        meta = {
            "id": "r",
            "finish_reason": {"type": "stop", "matched": 1} if end == 4 else None,
            "prompt_tokens": 6,
            "completion_tokens": end,
            "cached_tokens": 5,
            "output_token_logprobs": [[-0.5, n, None] for n in ids[start:end]],
            "output_top_logprobs": [[[-0.5, n, None]] for n in ids[start:end]],
        }
        stream.append({"text": "", "output_ids": ids[start:end], "meta_info": meta})
    seen: list[Any] = []
    client = await engine(replaying([stream], seen))
    pieces = await pieces_of(SglangUpstream(client), max_tokens=8, min_tokens=2, top_logprobs=1)
    assert joined(pieces) == (ids, "stop")
    assert [len(piece.logprobs) for piece in pieces] == [1, 2, 1]
    assert pieces[-1].top == [[(1, -0.5)]]
    assert seen == [
        {
            "input_ids": PROMPT,
            "sampling_params": {
                "max_new_tokens": 8,
                "temperature": 1.0,
                "top_p": 1.0,
                "skip_special_tokens": False,
                "min_new_tokens": 2,
            },
            "stream": True,
            "return_logprob": True,
            "top_logprobs_num": 1,
        }
    ]


# --- what all have in common ---------------------------------------------------------------------


async def test_refusals_failures_and_silence_are_told_apart(engine: Engine) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        status = {"/a/v1/completions": 400, "/b/v1/completions": 503}.get(request.path)
        if status is not None:
            return web.Response(status=status, text="why")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"token_ids": [82]}]}\n\n')
        if request.path.startswith("/c"):
            import asyncio

            await asyncio.sleep(5)
        assert request.transport is not None
        request.transport.abort()
        return response

    client = await engine(handle)
    found = {}
    for name, error in (
        ("a", UpstreamRefusalError),
        ("b", UpstreamError),
        ("c", UpstreamStallError),
        ("d", UpstreamError),
    ):
        other = EngineClient(f"{client.base_url}/{name}", stall_timeout_s=0.3)
        with pytest.raises(error) as caught:
            await pieces_of(VllmUpstream(other, model="m"), max_tokens=4)
        found[name] = type(caught.value)
        await other.close()
    assert found["b"] is UpstreamError
    assert found["d"] is UpstreamError
