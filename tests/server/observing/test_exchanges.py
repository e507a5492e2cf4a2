"""The trace of a gateway: every exchange can be read back, token for token."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from baleen.sandbox.trajectory import Kind, read, verify
from baleen.server.observing.exchanges import exchanges
from baleen.server.upstreams.scripted import Line

from ..conftest import ASKED, CALL, WEATHER, Serve


def log_in(folder: Path) -> Path:
    (path,) = folder.glob("*.log")
    return path


async def test_prompts_and_answers_are_those_of_the_engine(serve: Serve, tmp_path: Path) -> None:
    served = await serve(CALL, trace_dir=tmp_path)
    history: list[Any] = [*ASKED]
    for _ in range(4):
        body = await served.chat(history, tools=[WEATHER])
        message = body["choices"][0]["message"]
        message.pop("reasoning_content")
        calls = message["tool_calls"]
        results = [{"role": "tool", "tool_call_id": c["id"], "content": "sun"} for c in calls]
        history = [*history, message, *results]
    await served.chat([{"role": "user", "content": "Another talk."}])
    found = list(exchanges(log_in(tmp_path)))
    assert [list(each.prompt_ids) for each in found] == [
        list(asked.ids) for asked in served.upstream.asked
    ]
    for each in found:
        assert each.sampled_ids[-1] == served.gateway.vocabulary.eos
        assert each.key.startswith("chatcmpl-")
    assert found[0].answered["finish"] == "tool_calls"
    assert [call["status"] for call in found[0].answered["calls"]] == ["clean", "clean"]
    assert found[1].asked["reasoning_restored"] == 1
    assert found[1].asked["follows"] is not None
    assert found[4].asked["follows"] is None
    # What is repeated is not written again: the log grows with what is new.
    sizes = [len(each.asked["ids"]) for each in found]
    assert max(sizes[1:4]) < sizes[0]


async def test_places_sampling_and_breaks_are_told(serve: Serve, tmp_path: Path) -> None:
    served = await serve("Hm.</think>Yes.", trace_dir=tmp_path)
    headers = {"x-baleen-episode": "e7", "x-baleen-turn": "3"}
    body = {"messages": ASKED, "seed": 5, "stop": ["zzz"], "max_tokens": 50}
    await served.post("/v1/chat/completions", body, **headers)
    (each,) = exchanges(log_in(tmp_path))
    assert each.asked["place"] == {"episode": "e7", "turn": "3"}
    assert each.asked["sampling"]["seed"] == 5
    assert each.asked["max_tokens"] == 50
    assert each.answered["reasoning_tokens"] == 3
    first, *_ = read(log_in(tmp_path))
    assert first.kind is Kind.OPEN
    assert first.payload["model"] == "deepseek-v4"


@pytest.mark.parametrize("leaves", [True, False])
async def test_what_broke_off_is_told_with_its_tokens(
    serve: Serve, tmp_path: Path, *, leaves: bool
) -> None:
    line = Line("a " * 400, delay_s=0.01, breaks_after=None if leaves else 3)
    served = await serve(lambda _: line, trace_dir=tmp_path, upstream_retries=0)
    body = {"messages": ASKED, "stream": True, "max_tokens": 900}
    async with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.aiter_lines()
        async for text in lines:
            if leaves and '"reasoning_content":"a' in text:
                break
        await lines.aclose()
    async with asyncio.timeout(5):
        while not (found := list(exchanges(log_in(tmp_path)))):
            await asyncio.sleep(0.02)
    assert found[0].answered["cause"] == ("client" if leaves else "upstream")
    assert 0 < len(found[0].sampled_ids) < 400


async def test_the_log_is_one_that_the_sandbox_s_reader_verifies(
    serve: Serve, tmp_path: Path
) -> None:
    served = await serve("Hm.</think>Yes.", trace_dir=tmp_path / "new" / "folder")
    for path, body in (
        ("/v1/messages", {"messages": ASKED, "max_tokens": 9}),
        ("/v1/responses", {"input": "Hello"}),
    ):
        assert (await served.post(path, body)).status_code == 200
    path = log_in(tmp_path / "new" / "folder")
    assert verify(path) == 1 + 2 * 2
    data = path.read_bytes()
    path.write_bytes(data[:-3])  # a torn tail, as after kill -9
    assert len(list(exchanges(path))) == 1
