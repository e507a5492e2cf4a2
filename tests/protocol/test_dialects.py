"""Requests of three dialects say the same to the model."""

import json
from typing import Any

import pytest

from baleen.protocol import Encoder
from baleen.protocol.chat import encode_options, read_messages, write_messages
from baleen.protocol.dialects import anthropic, responses
from baleen.protocol.errors import MessageError, ToolSchemaError
from baleen.protocol.revision import Flavor

recipe = pytest.importorskip("deepseek_recipe", reason="deepseek-recipe is not installed")

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
MESSAGES_TOOLS = [{"name": "f", "description": "d", "input_schema": SCHEMA}]
RESPONSES_TOOLS = [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA}]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def texts(*given: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in given]


def use(call_id: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "f", "input": given}


def thinks(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": "s"}


def result(call_id: str, content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content}


def said(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


ANTHROPIC: list[dict[str, Any]] = [
    {"messages": [user("q")]},
    {"messages": [user("q")], "system": "s", "output_config": {"effort": "low"}},
    {"messages": [user(texts("x", "y"))], "system": texts("a", "b")},
    {"messages": [user("q")], "thinking": {"type": "disabled"}},
    {"messages": [user("q")], "thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}},
    {
        "messages": [
            user("q"),
            said(thinks("h"), *texts("t"), use("t1", a="x", n=1.5), use("t2")),
            user([result("t2", "r2"), result("t1", texts("r", "s")), *texts("and")]),
        ],
        "tools": MESSAGES_TOOLS,
    },
    {
        "messages": [user("q"), said(thinks("h"), thinks("i"), *texts("t", "u")), user("z")],
        "tools": MESSAGES_TOOLS,
    },
    {"messages": [user("q"), said(*texts("a")), said(*texts("b")), user("y"), user("z")]},
    {"messages": [{"role": "system", "content": "x"}, user("q")]},
    {
        "messages": [user("q")],
        "tools": MESSAGES_TOOLS,
        "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "disabled"},
    },
    {"messages": [user("q")], "tools": MESSAGES_TOOLS, "tool_choice": {"type": "none"}},
    {"messages": [user([{"type": "image", "source": {"type": "url", "url": "https://e.org/x"}}])]},
]


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def reasons(*given: str) -> dict[str, Any]:
    return item(
        "reasoning", summary=[], content=[item("reasoning_text", text=text) for text in given]
    )


RESPONSES: list[dict[str, Any]] = [
    {"input": "q"},
    {"input": "q", "instructions": "i", "reasoning": {"effort": "low"}},
    {"input": [user("q")], "reasoning": {"effort": "none"}},
    {"input": [item("message", role="user", content=[item("input_text", text="a")])]},
    {"input": [{"role": "developer", "content": "d"}, user("q")]},
    {"input": [{"role": "system", "content": "s"}, user("q")], "instructions": "i"},
    {
        "input": [
            user("q"),
            reasons("hm"),
            item("message", role="assistant", content=[item("output_text", text="t")]),
            item("function_call", call_id="c1", name="f", arguments='{"a": "x"}'),
            item("function_call", call_id="c2", name="f", arguments="{}"),
            item("function_call_output", call_id="c1", output="r1"),
            item("function_call_output", call_id="c2", output=[item("input_text", text="p")]),
            user("z"),
        ],
        "tools": RESPONSES_TOOLS,
    },
    {
        "input": [
            user("q"),
            reasons("a", "b"),
            reasons("c"),
            item("message", role="assistant", content="t"),
            user("z"),
        ],
        "tools": RESPONSES_TOOLS,
    },
    {
        "input": [
            user("q"),
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "content": "b"},
            user("z"),
        ]
    },
    {"input": [user("q"), reasons("a"), user("z")], "tools": RESPONSES_TOOLS},
    {"input": "q", "tools": [item("namespace", name="ns", description="D", tools=RESPONSES_TOOLS)]},
    {
        "input": "q",
        "tools": RESPONSES_TOOLS,
        "tool_choice": {"type": "function", "name": "f"},
        "reasoning": {"effort": "none"},
    },
    {"input": "q", "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
]


def rendered(request: Any) -> str:
    converted = request.convert(recipe.ConversionOptions())
    prompt: str = recipe.DeepseekV4Encoding().render_conversation(converted.conversation).prompt
    return prompt


def ours(chat: dict[str, Any]) -> str:
    return Encoder().encode(**encode_options(chat)).text


@pytest.mark.parametrize("body", ANTHROPIC, ids=range(len(ANTHROPIC)))
def test_messages_requests_become_the_published_prompt(body: dict[str, Any]) -> None:
    full = {"model": "DeepSeek-V4-Pro", "max_tokens": 9, **body}
    assert ours(anthropic.to_chat(full)) == rendered(recipe.MessagesRequest(json.dumps(full)))


@pytest.mark.parametrize("body", RESPONSES, ids=range(len(RESPONSES)))
def test_responses_requests_become_the_published_prompt(body: dict[str, Any]) -> None:
    full = {"model": "DeepSeek-V4-Pro", **body}
    assert ours(responses.to_chat(full)) == rendered(recipe.ResponsesRequest(json.dumps(full)))


@pytest.mark.parametrize("body", ANTHROPIC, ids=range(len(ANTHROPIC)))
def test_messages_requests_survive_the_way_there_and_back(body: dict[str, Any]) -> None:
    chat = anthropic.to_chat(body)
    assert ours(anthropic.to_chat(anthropic.from_chat(chat))) == ours(chat)


@pytest.mark.parametrize("body", RESPONSES, ids=range(len(RESPONSES)))
def test_responses_requests_survive_the_way_there_and_back(body: dict[str, Any]) -> None:
    chat = responses.to_chat(body)
    assert ours(responses.to_chat(responses.from_chat(chat))) == ours(chat)


@pytest.mark.parametrize("body", RESPONSES, ids=range(len(RESPONSES)))
def test_dialects_translate_into_each_other(body: dict[str, Any]) -> None:
    chat = responses.to_chat(body)
    through = anthropic.to_chat(anthropic.from_chat(chat))
    through = responses.to_chat(responses.from_chat(through))
    assert ours(through) == ours(chat)


@pytest.mark.parametrize("body", ANTHROPIC, ids=range(len(ANTHROPIC)))
def test_the_internal_type_survives_the_way_there_and_back(body: dict[str, Any]) -> None:
    read = read_messages(anthropic.to_chat(body)["messages"], Flavor.API)
    assert read_messages(write_messages(read), Flavor.API) == read


@pytest.mark.parametrize(
    ("convert", "body", "words"),
    [
        (anthropic.to_chat, {"messages": []}, "at least one message"),
        (anthropic.to_chat, {"messages": [{"role": "user", "content": []}]}, "non-empty content"),
        (anthropic.to_chat, {"messages": [{"role": "tool", "content": "x"}]}, "unknown role"),
        (anthropic.to_chat, {"messages": [user([{"type": "video"}])]}, "unknown variant `video`"),
        *(
            (anthropic.to_chat, {"messages": [{"role": "assistant", "content": [block]}]}, words)
            for block, words in (
                ({"type": "redacted_thinking", "data": "x"}, "variant `redacted_thinking`"),
                ({"type": "server_tool_use", "id": "x"}, "unknown variant `server_tool_use`"),
                ({"type": "tool_result", "tool_use_id": "x"}, "can only be in `user` messages"),
            )
        ),
        (responses.to_chat, {}, "Either input or instructions"),
        (responses.to_chat, {"input": []}, "must not be empty"),
        (responses.to_chat, {"input": "q", "previous_response_id": "r"}, "previous_response_id"),
        (responses.to_chat, {"input": [item("magic")]}, "not supported"),
    ],
)
def test_what_cannot_be_read_is_refused(convert: Any, body: dict[str, Any], words: str) -> None:
    with pytest.raises(MessageError, match=words):
        convert(body)


def test_tools_that_run_elsewhere_are_refused() -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    with pytest.raises(ToolSchemaError, match="server tools"):
        anthropic.to_chat({"messages": [user("q")], "tools": tools})
    with pytest.raises(ToolSchemaError, match="custom"):
        responses.to_chat({"input": "q", "tools": [{"type": "custom", "name": "c"}]})


@pytest.mark.parametrize("kind", ["auto", "any"])
def test_one_call_at_a_time_is_asked_for_in_all_dialects(kind: str) -> None:
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    choice = {"type": kind, "disable_parallel_tool_use": True}
    chat = anthropic.to_chat({"messages": [user("q")], "tools": tools, "tool_choice": choice})
    assert chat["parallel_tool_calls"] is False
    assert anthropic.from_chat(chat)["tool_choice"] == choice
    assert responses.from_chat(chat)["parallel_tool_calls"] is False
    chat = anthropic.to_chat({"messages": [user("q")], "tools": tools})
    assert "parallel_tool_calls" not in chat
    assert "tool_choice" not in anthropic.from_chat(chat)
