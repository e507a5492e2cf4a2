"""How long an answer may get and how it is drawn, where a request leaves it open."""

from __future__ import annotations

from typing import Any

import pytest

from ..conftest import ASKED, CALL, WEATHER, Serve

OFF = {"thinking": {"type": "disabled"}}
MAX = {"reasoning_effort": "max"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (OFF, 8_192),
        ({}, 65_536),
        (MAX, 131_072),
        ({"max_tokens": 77}, 77),
        ({"max_completion_tokens": 78}, 78),
        ({"max_tokens": 393_216}, 393_216),
    ],
)
async def test_an_answer_may_have_as_many_tokens(
    serve: Serve, fields: dict[str, Any], expected: int
) -> None:
    served = await serve("Hm.</think>Yes.")
    await served.chat(**fields)
    assert served.upstream.asked[0].max_tokens == expected


async def test_defaults_are_lowered_to_the_context_that_is_left(serve: Serve) -> None:
    served = await serve("Hm.</think>Yes.", upstream_options={"context_tokens": 1_000})
    body = await served.chat()
    assert served.upstream.asked[0].max_tokens == 1_000 - body["usage"]["prompt_tokens"]
    served = await serve(
        "Hm.</think>Yes.", upstream_options={"context_tokens": body["usage"]["prompt_tokens"] + 1}
    )
    assert (await served.chat())["choices"][0]["finish_reason"] == "length"
    assert served.upstream.asked[0].max_tokens == 1


async def test_messages_clamps_where_chat_refuses(serve: Serve) -> None:
    served = await serve("Hm.</think>Yes.")
    body = {"messages": ASKED, "max_tokens": 10**6}
    assert (await served.post("/v1/messages", body)).status_code == 200
    assert served.upstream.asked[0].max_tokens == 393_216
    assert (await served.post("/v1/chat/completions", body)).status_code == 400


@pytest.mark.parametrize(
    ("revision", "fields", "expected"),
    [
        ("0731", {}, (1.0, 1.0)),
        ("0731", {"tools": [WEATHER]}, (1.0, 0.95)),
        ("0731", {"tools": [WEATHER], "tool_choice": "none"}, (1.0, 1.0)),
        ("v4.1", {"tools": [WEATHER]}, (1.0, 1.0)),
        ("0731", OFF, (0.3, 0.5)),
        ("0731", {**OFF, "tools": [WEATHER]}, (0.3, 0.5)),
    ],
)
async def test_thinking_fixes_how_tokens_are_drawn(
    serve: Serve, revision: str, fields: dict[str, Any], expected: tuple[float, float]
) -> None:
    served = await serve("Hm.</think>Yes.", revision=revision)
    await served.chat(**fields, temperature=0.3, top_p=0.5)
    (asked,) = served.upstream.asked
    assert (asked.temperature, asked.top_p) == expected


async def test_without_thinking_and_wishes_tokens_are_drawn_as_they_are(serve: Serve) -> None:
    served = await serve("Yes.")
    await served.chat(**OFF)
    (asked,) = served.upstream.asked
    assert (asked.temperature, asked.top_p) == (1.0, 1.0)


async def test_a_choice_of_none_shows_no_tools_and_reads_no_calls(serve: Serve) -> None:
    served = await serve(CALL)
    body = await served.chat(tools=[WEATHER], tool_choice="none")
    segments = served.gateway.vocabulary.segments_of(served.upstream.asked[0].ids)
    assert "get_weather" not in "".join(text for text, _ in segments)
    assert "tool_calls" not in body["choices"][0]["message"]
    assert "DSML" not in body["choices"][0]["message"]["content"]
    assert served.upstream.asked[0].constraint is None
