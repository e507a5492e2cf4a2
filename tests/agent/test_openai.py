"""A model behind HTTP: what is sent, what is read, what is retried and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import ScriptedEndpoint

from baleen.agent import records
from baleen.agent.base import Turn, Watch
from baleen.agent.journal import Journal
from baleen.agent.openai import OpenAIEndpoint
from baleen.agent.prompt import GENERAL
from baleen.errors import EndpointError

CALLING = {
    "reasoning": "Look at the files first.",
    "content": "One moment.",
    "calls": [
        {"id": "call_00_a", "name": "bash", "arguments": '{"command": "ls"}'},
        {"id": "call_01_b", "name": "bash", "arguments": '{"command": "pwd"}'},
    ],
}
ANSWER = {"content": "8443"}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    start = records.Start("run-1", "Be brief.", "Which port?", records.now())
    journal = Journal.create(tmp_path / "wal", start)
    yield journal
    journal.close()


async def sample(
    server: ScriptedEndpoint, journal: Journal, watch: Watch | None = None, **options: Any
) -> Turn:
    endpoint = await OpenAIEndpoint.connect(server.url, None, tools=GENERAL.tools, **options)
    try:
        return await endpoint.sample(journal, 500, watch or Watch())
    finally:
        await endpoint.close()


class Heard(Watch):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def reasoning(self, text: str) -> None:
        self.texts.append(f"r:{text}")

    def content(self, text: str) -> None:
        self.texts.append(f"c:{text}")


async def test_a_streamed_turn_is_put_together_again(journal: Journal) -> None:
    with ScriptedEndpoint([CALLING]) as server:
        turn = await sample(server, journal)
    assert turn.reasoning == CALLING["reasoning"]
    assert turn.content == CALLING["content"]
    assert [(call.id, call.arguments) for call in turn.calls] == [
        ("call_00_a", '{"command": "ls"}'),
        ("call_01_b", '{"command": "pwd"}'),
    ]
    assert (turn.usage.prompt_tokens, turn.usage.cached_tokens) == (100, 60)
    assert turn.finish_reason == "stop"


async def test_the_request_carries_tools_and_the_whole_conversation(journal: Journal) -> None:
    with ScriptedEndpoint([CALLING, ANSWER]) as server:
        journal.write(records.TurnDone(0, await sample(server, journal), records.now()))
        for index in range(2):
            result = records.Result(0, index, f"out{index}", "box", 0, 0.0, False, "")
            journal.write(result)
        assert (await sample(server, journal, temperature=0.5)).content == "8443"
    first, second = server.requests
    assert "temperature" not in first
    assert second["temperature"] == 0.5
    assert [tool["function"]["name"] for tool in second["tools"]] == ["bash", "edit"]
    assert second["max_tokens"] == 500
    roles = [message["role"] for message in second["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool"]
    assert second["messages"][2]["reasoning_content"] == CALLING["reasoning"]
    assert second["messages"][2]["tool_calls"][1]["id"] == "call_01_b"
    assert second["messages"][4] == {
        "role": "tool",
        "tool_call_id": "call_01_b",
        "content": "out1",
    }


@pytest.mark.parametrize("fields", [("reasoning",), ("reasoning_content", "reasoning"), ()])
async def test_reasoning_returns_under_the_names_it_came_with(
    journal: Journal, fields: tuple[str, ...]
) -> None:
    script = {"reasoning": "Hm." if fields else "", "content": "x"}
    with ScriptedEndpoint([script], reasoning_fields=fields) as server:
        heard = Heard()
        turn = await sample(server, journal, heard)
    assert turn.reasoning_fields == tuple(sorted(fields, reverse=True))
    assert heard.texts == (["r:Hm.", "c:x"] if fields else ["c:x"])
    journal.write(records.TurnDone(0, turn, ""))
    assert set(journal.history.messages()[-1]) == {"role", "content", *fields}


async def test_refusals_without_work_are_retried(journal: Journal) -> None:
    with ScriptedEndpoint([ANSWER], failures=[503, 429]) as server:
        assert (await sample(server, journal)).content == "8443"
    assert len(server.requests) == 3


async def test_a_final_refusal_is_told_with_its_text_and_not_repeated(journal: Journal) -> None:
    with (
        ScriptedEndpoint([ANSWER], failures=[401]) as server,
        pytest.raises(EndpointError, match=r"answered 401: .*scripted 401.*set OPENAI_API_KEY"),
    ):
        await sample(server, journal)
    assert len(server.requests) == 1


async def test_a_broken_stream_is_an_error_and_never_a_short_answer(journal: Journal) -> None:
    with (
        ScriptedEndpoint([CALLING], failures=["cut"]) as server,
        pytest.raises(EndpointError, match=r"before the answer was complete.*--resume"),
    ):
        await sample(server, journal)
    assert len(server.requests) == 1


async def test_a_turn_cut_by_length_makes_no_call(journal: Journal) -> None:
    with ScriptedEndpoint([{**CALLING, "finish_reason": "length"}]) as server:
        turn = await sample(server, journal)
    assert turn.finish_reason == "length"
    assert turn.calls == ()


async def test_several_models_must_be_chosen_from(journal: Journal) -> None:
    with (
        ScriptedEndpoint([ANSWER], models=["a", "b"]) as server,
        pytest.raises(EndpointError, match="--model-name: a, b"),
    ):
        await sample(server, journal)


async def test_the_key_of_the_environment_is_sent(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with ScriptedEndpoint([ANSWER]) as server:
        await sample(server, journal)
    assert server.headers[0]["authorization"] == "Bearer sk-test"


async def test_an_endpoint_that_is_not_there_is_named(journal: Journal) -> None:
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached"):
        await OpenAIEndpoint.connect("http://127.0.0.1:9/v1", None, tools=())


async def test_something_that_is_no_endpoint_is_named(journal: Journal) -> None:
    with ScriptedEndpoint([{"content": "x"}]) as server:
        server.chunks = lambda turn: ["not an object"]  # type: ignore[assignment, method-assign]
        with pytest.raises(EndpointError, match="no JSON object"):
            await sample(server, journal)
