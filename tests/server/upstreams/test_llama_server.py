"""A real llama-server behind the doors, with a small model of random weights.

Such a model says anything that it is not kept from saying: whatever a grammar lets through comes.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.peers import LLAMA_SERVER
from tokenizers import Tokenizer

from baleen.assets import nano_dir
from baleen.model import ModelConfig, Transformer, initialize
from baleen.server.base import Generation, Piece
from baleen.server.room import Room
from baleen.server.upstreams.http_client import EngineClient
from baleen.server.upstreams.opening import open_upstream

from ..conftest import ASKED, Serve, Served

pytestmark = pytest.mark.skipif(
    not LLAMA_SERVER.exists(), reason="no llama-server: python tests/peers.py"
)
CONVERTER = Path(__file__).parents[3] / "benchmarks/peers/llama_convert.py"
TOKENIZER = nano_dir() / "tokenizer.json"
CONFIG = ModelConfig(
    vocab_size=Tokenizer.from_file(str(TOKENIZER)).get_vocab_size(),
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=128,
    q_lora_rank=64,
    o_groups=2,
    o_lora_rank=64,
    compress_ratios=(0, 0, 4, 128),
    index_n_heads=32,
    index_topk=64,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=256,
    num_nextn_predict_layers=0,
    expert_dtype="fp4",
)
WAIT = {
    "type": "function",
    "function": {
        "name": "wait",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer"}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}
FORCED: dict[str, Any] = {
    "tools": [WAIT],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "temperature": 0.7,
    "max_tokens": 2_000,
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running llama-server."""
    folder = tmp_path_factory.mktemp("llama") / "model"
    initialize(Transformer(CONFIG), 0).save_pretrained(folder, format="fp4")
    # .../llama.cpp/build/bin/llama-server, beside the source it was built from.
    (source,) = LLAMA_SERVER.parents[2].glob("llama_cpp_python-*/vendor/llama.cpp")
    model = folder / "model.gguf"
    convert = [sys.executable, CONVERTER, source, folder, model, TOKENIZER]
    subprocess.run(list(map(str, convert)), check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["-m", model, "--port", port, "-c", 8_192, "-np", 2, "-t", 1, "--slots", "--no-webui"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([LLAMA_SERVER, *map(str, options)], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(f"{url}/health", server, folder / "log")
            yield url
        finally:
            server.kill()
            server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()[-2_000:]
        try:
            with urllib.request.urlopen(url, timeout=1) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"llama-server does not come up: {log.read_text()[-2_000:]}")


@pytest.fixture
async def served(serve: Serve, tokenizer: Tokenizer, address: str) -> Served:
    return await serve(await open_upstream(EngineClient(address), tokenizer))


class Taking:
    """Takes everything."""

    def __init__(self) -> None:
        self.room, self.pieces = Room(), list[Piece]()

    def take(self, piece: Piece) -> bool:
        self.pieces.append(piece)
        return True

    @property
    def ids(self) -> list[int]:
        return [number for piece in self.pieces for number in piece.ids]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("logprobs", [False, True], ids=["streamed", "whole"])
async def test_a_forced_call_comes_and_fits_its_schema(
    served: Served, seed: int, *, logprobs: bool
) -> None:
    body = await served.chat(**FORCED, thinking={"type": "disabled"}, seed=seed, logprobs=logprobs)
    (choice,) = body["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert isinstance(json.loads(call["function"]["arguments"])["days"], int)
    assert "tool_report" not in choice["baleen"], "nothing had to be repaired"
    assert (choice["logprobs"] is not None) == logprobs


async def test_a_forced_call_follows_the_reasoning(served: Served) -> None:
    body = await served.chat(**FORCED, thinking_token_budget=30, seed=1)
    (choice,) = body["choices"]
    assert choice["message"]["reasoning_content"]
    (call,) = choice["message"]["tool_calls"]
    assert isinstance(json.loads(call["function"]["arguments"])["days"], int)


@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
async def test_answers_have_the_form_that_was_asked_for(served: Served, thinking: str) -> None:
    holder = {"name": "wait", "schema": WAIT["function"]["parameters"]}
    schema = {"type": "json_schema", "json_schema": holder}
    pattern = "(yes|no), [0-9]{1,3} days"
    for form, fits in (
        (schema, lambda text: isinstance(json.loads(text)["days"], int)),
        ({"type": "regex", "regex": pattern}, lambda text: re.fullmatch(pattern, text)),
    ):
        body = await served.chat(
            response_format=form,
            thinking={"type": thinking},
            thinking_token_budget=30,
            max_tokens=1_000,
            seed=2,
        )
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "stop"
        assert fits(choice["message"]["content"]), choice


@pytest.mark.parametrize("question", ["Say something odd.", "Grüße aus Köln", "12 * 12"])
async def test_the_ids_of_a_stream_are_those_of_the_whole(
    served: Served, tokenizer: Tokenizer, question: str
) -> None:
    """Random bytes are rarely characters, so ids are withheld from the stream all the time.

    Each detour computes the last tokens once more, which in the long run rounds to another token.
    """
    ids = tokenizer.encode(question).ids
    streamed, whole = Taking(), Taking()
    await served.upstream.generate(Generation(ids, max_tokens=24, temperature=0.0), streamed)
    asked = Generation(ids, max_tokens=24, temperature=0.0, top_logprobs=0)
    await served.upstream.generate(asked, whole)
    assert len(streamed.ids) == 24
    assert streamed.ids[:16] == whole.ids[:16]
    assert [piece.finish for piece in streamed.pieces if piece.finish] == ["length"]


async def test_a_second_turn_finds_its_prefix_computed(served: Served) -> None:
    fields: dict[str, Any] = {"thinking": {"type": "disabled"}, "max_tokens": 40, "seed": 3}
    first = await served.chat(**fields)
    message = first["choices"][0]["message"]
    history = [*ASKED, message, {"role": "user", "content": "And in Bonn?"}]
    again = await served.chat(history, **fields)
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    computed = first["usage"]["total_tokens"]
    assert computed - 8 <= cached <= computed
    assert "cache_break_reason" not in again["choices"][0]["baleen"]


async def test_a_client_that_leaves_frees_the_slot(served: Served, address: str) -> None:
    body = {"messages": ASKED, "stream": True, "max_tokens": 3_000}
    async with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.aiter_lines()
        await anext(lines)
        await lines.aclose()
    client = EngineClient(address)
    async with asyncio.timeout(20):
        while any(slot["is_processing"] for slot in await client.get("/slots")):
            await asyncio.sleep(0.05)
    await client.close()
