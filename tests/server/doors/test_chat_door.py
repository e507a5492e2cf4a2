"""Chat Completions, seen from the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..conftest import ASKED, CALL, WEATHER, Serve


def chunks(text: str) -> list[dict[str, Any]]:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_whole_answer_has_reasoning_content_and_usage(serve: Serve) -> None:
    served = await serve("Simple.</think>Hello!")
    body = await served.chat()
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Simple.", "Hello!")
    assert body["choices"][0]["finish_reason"] == "stop"
    usage, asked = body["usage"], served.upstream.asked[0]
    assert usage["prompt_tokens"] == len(asked.ids)
    assert usage["completion_tokens"] == served.upstream.num_sampled
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]


async def test_a_stream_says_what_the_whole_answer_says(serve: Serve) -> None:
    served = await serve(CALL)
    whole = (await served.chat(tools=[WEATHER]))["choices"][0]
    response = await served.post(
        "/v1/chat/completions", {"messages": ASKED, "tools": [WEATHER], "stream": True}
    )
    streamed = chunks(response.text)
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed]
    for field in ("content", "reasoning_content"):
        joined = "".join(delta.get(field) or "" for delta in deltas)
        assert joined == whole["message"][field]
    calls: dict[int, dict[str, str]] = {}
    for delta in deltas:
        for part in delta.get("tool_calls", ()):
            call = calls.setdefault(part["index"], {"name": "", "arguments": ""})
            call["name"] += part["function"].get("name", "")
            call["arguments"] += part["function"]["arguments"]
    assert list(calls.values()) == [call["function"] for call in whole["message"]["tool_calls"]]
    assert json.loads(calls[0]["arguments"]) == {"city": "Köln", "days": 2}
    assert streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"


NO_USAGE = {"stream_options": {"include_usage": False}}


async def test_usage_comes_on_a_chunk_of_its_own_when_asked_for(serve: Serve) -> None:
    served = await serve("a</think>b")
    body = {"messages": ASKED, "stream": True, "stream_options": {"include_usage": True}}
    streamed = chunks((await served.post("/v1/chat/completions", body)).text)
    assert streamed[-1]["choices"] == []
    assert streamed[-1]["usage"]["completion_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in streamed[:-1]), "clients add them up"
    without = chunks((await served.post("/v1/chat/completions", {**body, **NO_USAGE})).text)
    assert without[-1]["choices"][0]["finish_reason"] == "stop"
    assert without[-1]["usage"]["completion_tokens"] == 4
    assert all("usage" not in chunk for chunk in without[:-1])


async def test_max_tokens_ends_a_call_as_length_and_keeps_it_out_of_tool_calls(
    serve: Serve,
) -> None:
    served = await serve(CALL)
    choice = (await served.chat(tools=[WEATHER], max_tokens=50))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    (report,) = choice["baleen"]["tool_report"]
    assert report["result"] == "truncated"
    assert report["name"] == "get_weather"


async def test_stop_strings_end_the_content_wherever_they_are_cut(serve: Serve) -> None:
    served = await serve("x STOP y</think>one two STOP three")
    whole = (await served.chat(stop=["STOP"]))["choices"][0]
    assert whole["message"]["content"] == "one two "
    assert whole["message"]["reasoning_content"] == "x STOP y"
    assert whole["finish_reason"] == "stop"
    body = {"messages": ASKED, "stream": True, "stop": "STOP"}
    streamed = chunks((await served.post("/v1/chat/completions", body)).text)
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in streamed)
    assert said == "one two "


async def test_log_probabilities_are_given_once_per_token(serve: Serve) -> None:
    served = await serve("ab</think>cd")
    body = {"messages": ASKED, "stream": True, "logprobs": True, "return_token_ids": True}
    streamed = chunks((await served.post("/v1/chat/completions", body)).text)
    entries = [
        entry
        for chunk in streamed
        for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [entry["token_id"] for entry in entries] == streamed[-1]["choices"][0]["token_ids"]
    assert {entry["logprob"] for entry in entries} == {-0.5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "Empty input messages"),
        ({}, "Empty input messages"),
        (
            {"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]},
            "Messages with role 'tool' must be a response to a preceding message with 'tool_calls'",
        ),
        (
            {
                "messages": [
                    *ASKED,
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [
                            {
                                "id": "c",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{}"},
                            }
                        ],
                    },
                    *ASKED,
                ]
            },
            "An assistant message with 'tool_calls' must be followed by tool messages responding"
            " to each 'tool_call_id'. (insufficient tool messages following tool_calls message)",
        ),
        (
            {"messages": ASKED, "max_tokens": 0},
            "Invalid max_tokens value, the valid range of max_tokens is [1, 393216]",
        ),
        (
            {"messages": ASKED, "max_tokens": 393_217},
            "Invalid max_tokens value, the valid range of max_tokens is [1, 393216]",
        ),
        (
            {"messages": ASKED, "response_format": {"type": "json_object"}},
            "Prompt must contain the word 'json' in some form to use 'response_format' of type"
            " 'json_object'.",
        ),
        (
            {"messages": ASKED, "n": 2},
            "Invalid n value (currently only n = 1 is supported)",
        ),
        (
            {"messages": ASKED, "temperature": 2.5},
            "Invalid temperature value, the valid range of temperature is [0, 2]",
        ),
    ],
)
async def test_refusals_are_worded_as_clients_know_them(
    serve: Serve, fields: dict[str, Any], message: str
) -> None:
    served = await serve("a</think>b")
    response = await served.post("/v1/chat/completions", fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"] == message
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        None,
        "invalid_request_error",
    )


async def test_a_context_that_overflows_is_refused_with_both_numbers(serve: Serve) -> None:
    served = await serve("a</think>b", upstream_options={"context_tokens": 100})
    response = await served.post("/v1/chat/completions", {"messages": ASKED, "max_tokens": 90})
    prompt = (await served.chat())["usage"]["prompt_tokens"]
    assert response.json()["error"]["message"] == (
        f"This model's maximum context length is 100 tokens. However, you requested {prompt + 90}"
        f" tokens ({prompt} in the messages, 90 in the completion). Please reduce the length of"
        " the messages or completion."
    )


async def test_a_forced_choice_is_refused_while_thinking_only_by_flag(serve: Serve) -> None:
    served = await serve(CALL, refuses_forced_thinking=True)
    body = {"messages": ASKED, "tools": [WEATHER], "tool_choice": "required"}
    response = await served.post("/v1/chat/completions", body)
    assert response.json()["error"]["message"] == (
        "Thinking mode does not support this tool_choice"
    )
    served = await serve(CALL)
    choice = (await served.chat(tools=[WEATHER], tool_choice="required"))["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 2


async def test_both_fields_carry_reasoning_if_asked_for(serve: Serve) -> None:
    served = await serve("why</think>b", emits_reasoning_twice=True)
    message = (await served.chat())["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "why"


async def test_models_and_health_say_what_is_served(serve: Serve) -> None:
    served = await serve("a</think>b", model_name="toy")
    (model,) = (await served.http.get("/v1/models")).json()["data"]
    assert model["id"] == "toy"
    assert (await served.http.get("/v1/models/toy")).status_code == 200
    assert (await served.http.get("/v1/models/other")).status_code == 404
    assert (await served.http.get("/health")).status_code == 200
    assert (await served.http.get("/nowhere")).status_code == 404
    assert (await served.http.get("/v1/chat/completions")).status_code == 405
