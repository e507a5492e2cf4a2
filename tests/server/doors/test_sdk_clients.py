"""The official clients, against a real socket."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest

from ..conftest import ASKED, CALL, WEATHER, Serve, Served

TOOL = {
    "name": "get_weather",
    "description": "Weather by city",
    "input_schema": WEATHER["function"]["parameters"],
}


def script(served_tokenizer: Any) -> Any:
    """Calls until the prompt holds a tool result."""
    marker = served_tokenizer.encode("<tool_result>").ids

    def say(asked: Any) -> str:
        ids = list(asked.ids)
        found = any(ids[i : i + len(marker)] == marker for i in range(len(ids)))
        return "Known.</think>Sunny." if found else CALL

    return say


@pytest.fixture
async def served(serve: Serve, tokenizer: Any) -> Served:
    return await serve(script(tokenizer))


def client(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0)


def claude(served: Served) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=served.url, api_key="x", max_retries=0)


async def test_openai_chat_completes_two_turns(served: Served) -> None:
    async with client(served) as api:
        messages: list[Any] = [*ASKED]
        first = await api.chat.completions.create(model="m", messages=messages, tools=[WEATHER])
        calls = first.choices[0].message.tool_calls
        assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Köln", "Bonn"]
        messages.append(first.choices[0].message)
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in reversed(calls)
        ]
        second = await api.chat.completions.create(model="m", messages=messages, tools=[WEATHER])
        assert second.choices[0].message.content == "Sunny."
        assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens


async def test_openai_chat_streams_parallel_calls(served: Served) -> None:
    async with (
        client(served) as api,
        api.chat.completions.stream(model="m", messages=ASKED, tools=[WEATHER]) as stream,
    ):
        final = await stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "Checking."
    assert [call.function.name for call in message.tool_calls] == ["get_weather"] * 2


async def test_openai_responses_goes_on_by_id(served: Served) -> None:
    tool = {"type": "function", **WEATHER["function"]}
    async with client(served) as api:
        async with api.responses.stream(model="m", input="Weather?", tools=[tool]) as stream:
            first = await stream.get_final_response()
        calls = [item for item in first.output if item.type == "function_call"]
        assert json.loads(calls[0].arguments) == {"city": "Köln", "days": 2}
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
            for call in calls
        ]
        second = await api.responses.create(
            model="m", input=results, tools=[tool], previous_response_id=first.id
        )
        assert second.output_text == "Sunny."
        with pytest.raises(openai.BadRequestError, match="not found"):
            await api.responses.create(model="m", input="x", previous_response_id="resp_none")


async def test_anthropic_streams_thinking_and_tools(served: Served) -> None:
    async with claude(served) as api:
        messages: list[Any] = [*ASKED]
        async with api.messages.stream(
            model="claude-x", max_tokens=4000, messages=messages, tools=[TOOL]
        ) as stream:
            first = await stream.get_final_message()
        assert [block.type for block in first.content] == [
            "thinking",
            "text",
            "tool_use",
            "tool_use",
        ]
        assert first.stop_reason == "tool_use"
        assert first.content[2].input == {"city": "Köln", "days": 2}
        messages.append({"role": "assistant", "content": first.content})
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "sun"}
            for block in first.content
            if block.type == "tool_use"
        ]
        messages.append({"role": "user", "content": results})
        second = await api.messages.create(
            model="claude-x", max_tokens=4000, messages=messages, tools=[TOOL]
        )
        assert second.content[-1].text == "Sunny."
        assert second.usage.cache_read_input_tokens > 0
        counted = await api.messages.count_tokens(model="m", messages=ASKED, tools=[TOOL])
        assert counted.input_tokens == first.usage.input_tokens


async def test_anthropic_is_told_of_errors_in_its_form(served: Served) -> None:
    async with claude(served) as api:
        with pytest.raises(anthropic.BadRequestError, match="at least one message"):
            await api.messages.create(model="m", max_tokens=5, messages=[])


async def test_openai_is_told_of_an_unknown_key(serve: Serve) -> None:
    served = await serve("a</think>b", api_keys=("right",))
    async with client(served) as api:
        with pytest.raises(openai.AuthenticationError):
            await api.chat.completions.create(model="m", messages=ASKED)
    right = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="right")
    async with right as api:
        assert (await api.chat.completions.create(model="m", messages=ASKED)).choices
    health = await served.http.get("/health")
    assert health.status_code == 200


async def test_openai_completions_take_and_give_token_ids(serve: Serve, tokenizer: Any) -> None:
    served = await serve("Hello wörld")
    async with client(served) as api:
        found = await api.completions.create(
            model="m",
            prompt=tokenizer.encode("Say").ids,
            max_tokens=40,
            logprobs=0,
            extra_body={"return_token_ids": True},
        )
    choice = found.choices[0]
    assert choice.text == "Hello wörld"
    assert choice.finish_reason == "stop"
    assert len(choice.logprobs.token_logprobs) == len(choice.token_ids)
    assert choice.prompt_token_ids == tokenizer.encode("Say").ids
    body = {"prompt": "Say", "max_tokens": 40, "stream": True, "stop": "wö"}
    text = (await served.post("/v1/completions", body)).text
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines) == "Hello "


async def test_tokens_can_be_counted_and_read(serve: Serve, tokenizer: Any) -> None:
    served = await serve("a</think>b")
    found = (await served.post("/tokenize", {"messages": ASKED})).json()
    usage = (await served.chat())["usage"]
    assert found["count"] == usage["prompt_tokens"] == len(found["tokens"])
    text = (await served.post("/detokenize", {"tokens": found["tokens"]})).json()["prompt"]
    assert text.endswith("<｜User｜>Weather in Köln?<｜Assistant｜><think>")
    plain = (await served.post("/tokenize", {"prompt": "<｜User｜>"})).json()["tokens"]
    assert tokenizer.token_to_id("<｜User｜>") not in plain
    bad = await served.post("/detokenize", {"tokens": [10**9]})
    assert bad.status_code == 400
