"""A model in this process is held to the tools, as engines over HTTP are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from baleen.server.upstreams.local import LocalUpstream

from ..conftest import ASKED, Serve

BOOK = {
    "type": "function",
    "function": {
        "name": "book_table",
        "parameters": {
            "type": "object",
            "properties": {
                "guests": {"type": "integer", "minimum": 1, "maximum": 12},
                "mood": {"enum": ["quiet", "lively"]},
            },
            "required": ["guests", "mood"],
            "additionalProperties": False,
        },
    },
}
WAIT = {
    "type": "function",
    "function": {"name": "wait", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def upstream() -> LocalUpstream:
    return LocalUpstream.load("nano", "0731")


async def calls_of(serve: Serve, upstream: LocalUpstream, *, grammar: bool, **fields: Any) -> Any:
    served = await serve(upstream, uses_grammar=grammar, recovers=False)
    body = await served.chat(
        messages=[{"role": "user", "content": "A table for four, please."}],
        tools=[WAIT, BOOK],
        temperature=1.0,
        **fields,
    )
    return body["choices"][0]["message"].get("tool_calls") or []


FORCED = {"type": "function", "function": {"name": "book_table"}}


@pytest.mark.parametrize("seed", range(3))
async def test_a_tool_that_nano_never_saw_is_called_as_its_schema_demands(
    serve: Serve, upstream: LocalUpstream, seed: int
) -> None:
    fields = {
        "tool_choice": FORCED,
        "parallel_tool_calls": False,
        "thinking": {"type": "disabled"},
        "seed": seed,
        "max_tokens": 400,
    }
    (call,) = await calls_of(serve, upstream, grammar=True, **fields)
    assert call["function"]["name"] == "book_table"
    arguments = json.loads(call["function"]["arguments"])
    assert sorted(arguments) == ["guests", "mood"]
    assert arguments["guests"] in range(1, 13)
    assert arguments["mood"] in ("quiet", "lively")


async def test_without_the_grammar_nano_calls_what_it_likes(
    serve: Serve, upstream: LocalUpstream
) -> None:
    fields = {"tool_choice": FORCED, "thinking": {"type": "disabled"}, "max_tokens": 60}
    calls = await calls_of(serve, upstream, grammar=False, seed=0, **fields)
    assert all(call["function"]["name"] != "book_table" for call in calls)


FORECAST = {
    "type": "object",
    "properties": {"city": {"enum": ["Köln", "Bonn"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def _is_forecast(text: str) -> bool:
    found = json.loads(text)
    return found["city"] in ("Köln", "Bonn") and found["days"] <= 9 and len(found) == 2


def _is_said(text: str) -> bool:
    return re.fullmatch("(yes|no), [0-9]+ days", text) is not None


WRAPPED = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": FORECAST}}
FORMS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "schema": ({"response_format": WRAPPED}, _is_forecast),
    "pattern": ({"response_format": {"type": "regex", "regex": "(yes|no), [0-9]+ days"}}, _is_said),
    "vllm": ({"structured_outputs": {"regex": "(yes|no), [0-9]+ days"}}, _is_said),
    "older vllm": ({"guided_json": json.dumps(FORECAST)}, _is_forecast),
    "choice": ({"guided_choice": ["one [day]", "a|b"]}, ["one [day]", "a|b"].__contains__),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
async def test_an_answer_behind_the_reasoning_has_the_form_that_was_asked_for(
    serve: Serve, upstream: LocalUpstream, name: str, thinking: str
) -> None:
    served = await serve(upstream, recovers=False)
    fields, has_form = FORMS[name]
    for seed in range(2):
        body = await served.chat(
            [{"role": "user", "content": "The weather?"}],
            thinking={"type": thinking},
            thinking_token_budget=40,
            temperature=1.0,
            max_tokens=400,
            seed=seed,
            **fields,
        )
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "stop"
        assert has_form(choice["message"]["content"]), choice


async def test_any_object_is_an_object(serve: Serve, upstream: LocalUpstream) -> None:
    served = await serve(upstream, recovers=False)
    body = await served.chat(
        [{"role": "user", "content": "The weather, as json."}],
        response_format={"type": "json_object"},
        thinking={"type": "disabled"},
        max_tokens=1500,
    )
    (choice,) = body["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert choice["message"]["content"].startswith("{")


async def test_forms_come_through_the_other_doors(serve: Serve, upstream: LocalUpstream) -> None:
    served = await serve(upstream, recovers=False)
    shape = {"type": "json_schema", "name": "forecast", "schema": FORECAST}
    asked = {"input": "The weather?", "text": {"format": shape}, "reasoning": {"effort": "none"}}
    response = (await served.post("/v1/responses", asked)).json()
    assert _is_forecast(response["output"][-1]["content"][0]["text"])
    asked = {
        "max_tokens": 300,
        "messages": [{"role": "user", "content": "The weather?"}],
        "thinking": {"type": "disabled"},
        "output_config": {"format": {"type": "json_schema", "schema": FORECAST}},
    }
    message = (await served.post("/v1/messages", asked)).json()
    assert _is_forecast(message["content"][-1]["text"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"response_format": {"type": "regex", "regex": 5}}, "must be a regular expression"),
        ({"response_format": {"type": "regex", "regex": "(?=a)b"}}, "cannot be followed"),
        ({"structured_outputs": {"grammar": "root ::= 1"}}, "is not supported"),
        ({"structured_outputs": {"json": "{", "regex": "a"}}, "only one form"),
        ({"guided_json": "{"}, "is no JSON"),
        ({"guided_choice": []}, "list of strings"),
        ({"guided_json": {"enum": []}}, "no answer"),
    ],
)
async def test_a_form_that_cannot_be_followed_is_refused(
    serve: Serve, upstream: LocalUpstream, fields: dict[str, Any], says: str
) -> None:
    served = await serve(upstream)
    response = await served.post("/v1/chat/completions", {"messages": ASKED, **fields})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


async def test_one_call_at_a_time_is_kept_to_in_messages(
    serve: Serve, upstream: LocalUpstream
) -> None:
    served = await serve(upstream, recovers=False)
    function = BOOK["function"]
    body = {
        "max_tokens": 400,
        "messages": [{"role": "user", "content": "A table for four, please."}],
        "thinking": {"type": "disabled"},
        "temperature": 1.0,
        "tools": [{"name": function["name"], "input_schema": function["parameters"]}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    for _ in range(3):
        message = (await served.post("/v1/messages", body)).json()
        (block,) = message["content"]
        assert block["type"] == "tool_use"
        assert block["input"]["guests"] in range(1, 13)
        assert message["stop_reason"] == "tool_use"
