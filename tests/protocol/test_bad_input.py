"""Whatever a client sends, it gets a prompt or one of our errors."""

import copy
import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.errors import BaleenError
from baleen.protocol import Encoder
from baleen.protocol.chat import encode_options
from baleen.protocol.dialects import anthropic, responses

CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": "q json"},
        {
            "role": "assistant",
            "content": "a",
            "reasoning_content": "r",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}]},
        {"role": "user", "content_blocks": [{"type": "tool_result", "content": "x"}]},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "d",
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {
                        "a": {"type": "array", "items": {"type": "string", "enum": ["x"]}},
                        "b": {"anyOf": [{"type": "integer", "minimum": 1}]},
                    },
                    "required": ["a", "b"],
                },
            },
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "thinking": {"type": "enabled"},
    "reasoning_effort": "low",
}
JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
MESSAGES: dict[str, Any] = {
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c",
                    "content": [{"type": "text", "text": "r"}],
                }
            ],
        },
    ],
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "disabled"},
    "output_config": {"effort": "low", "format": {"schema": {}}},
}
RESPONSES: dict[str, Any] = {
    "instructions": "i",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "r"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "r"},
    ],
    "tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]}],
    "tool_choice": {"type": "function", "name": "n__f"},
    "reasoning": {"effort": "none"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
}
JUNK = [None, 5, -1.5, "", "x", [], [5], {}, {"x": None}, True, "\ud800"]


def spoilt(body: Any, dice: random.Random) -> Any:
    """The body with one to three values replaced, or fields removed."""
    body = copy.deepcopy(body)
    for _ in range(dice.randint(1, 3)):
        holders = [h for h in _holders(body) if h]
        holder = dice.choice(holders)
        key = dice.choice(list(holder)) if isinstance(holder, dict) else dice.randrange(len(holder))
        if isinstance(holder, dict) and dice.random() < 0.3:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(dice.choice(JUNK))
    return body


def _holders(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(h for item in value.values() for h in _holders(item))]
    if isinstance(value, list):
        return [value, *(h for item in value for h in _holders(item))]
    return []


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    revision=st.sampled_from(["0731", "v4.1"]),
    flavor=st.sampled_from(["api", "checkpoint"]),
    given_format=st.sampled_from([None, JSON_FORMAT, {"type": "json_object"}]),
)
def test_spoilt_chat_requests_fail_with_our_errors(
    seed: int, revision: str, flavor: str, given_format: Any
) -> None:
    body = spoilt({**CHAT, "response_format": given_format}, random.Random(seed))
    with suppress(BaleenError):
        text = Encoder(revision, flavor).encode(**encode_options(body)).text
        assert text.startswith("<｜begin▁of▁sentence｜>")


@pytest.mark.parametrize(
    ("convert", "body"), [(anthropic.to_chat, MESSAGES), (responses.to_chat, RESPONSES)]
)
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_spoilt_requests_of_other_dialects_fail_with_our_errors(
    convert: Any, body: Any, seed: int
) -> None:
    with suppress(BaleenError):
        Encoder().encode(**encode_options(convert(spoilt(body, random.Random(seed)))))


def test_the_bodies_are_good_before_they_are_spoilt() -> None:
    Encoder("0731", "checkpoint").encode(**encode_options(CHAT))
    Encoder().encode(**encode_options(anthropic.to_chat(MESSAGES)))
    Encoder().encode(**encode_options(responses.to_chat(RESPONSES)))
