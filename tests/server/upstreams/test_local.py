"""A model in this process is held to the tools, as engines over HTTP are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baleen.server.upstreams.local import LocalUpstream

from ..conftest import Serve

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
