"""Golden prompts: byte counts and digests of the published encoders' own output."""

from hashlib import sha256
from typing import Any

import pytest

from baleen.protocol import Encoder

SYSTEM = {"role": "system", "content": "You are baleen."}
USER = {"role": "user", "content": "Wetter in Köln?"}
CALLING = {
    "role": "assistant",
    "content": "Checking.",
    "reasoning_content": "Two lookups.",
    "tool_calls": [
        {
            "id": "call_00_a",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Köln", "days": 2}'},
        },
        {
            "id": "call_01_b",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Bonn"}'},
        },
    ],
}
RESULTS = [
    {"role": "tool", "tool_call_id": "call_01_b", "content": "rain"},
    {"role": "tool", "tool_call_id": "call_00_a", "content": "sun"},
]
THANKS = {"role": "user", "content": "Thanks"}
ANSWER = {"role": "assistant", "content": "Sun, then rain.", "reasoning_content": "Done."}
AND_NOW = {"role": "user", "content": "And now?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather by city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]
SHORT = [SYSTEM, USER]
ONE_ROUND = [SYSTEM, USER, CALLING, *RESULTS, THANKS]
TWO_ROUNDS = [SYSTEM, USER, CALLING, *RESULTS, ANSWER, AND_NOW]
LOW: dict[str, Any] = {"effort": "low"}
CHAT: dict[str, Any] = {"thinking": False}

CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any], int, str]] = [
    ("P1", SHORT, LOW, 96, "4c232f83c94870cd"),
    ("P2", SHORT, CHAT, 97, "c1490ef967925263"),
    ("P3", ONE_ROUND, {**LOW, "tools": TOOLS}, 1908, "62ff0ce56b58d7ff"),
    ("P4", TWO_ROUNDS, {**LOW, "tools": TOOLS}, 1999, "fad1d207baefa86e"),
    ("P5", TWO_ROUNDS, LOW, 704, "1d366bd1791affd0"),
    ("P6", TWO_ROUNDS, {**CHAT, "tools": TOOLS}, 1969, "2362c1165b89e86b"),
    ("P7", [USER], {**LOW, "tools": TOOLS}, 1345, "d879f6fa9b77d41e"),
    ("P8", SHORT, {"effort": "high"}, 572, "8f245395e749388c"),
    ("P9", SHORT, {"effort": "max"}, 624, "9099403e164a5d62"),
]


@pytest.mark.parametrize("flavor", ["api", "checkpoint"])
@pytest.mark.parametrize(("name", "messages", "options", "num_bytes", "digest"), CASES)
def test_prompt_is_the_golden_one(
    name: str,
    messages: list[dict[str, Any]],
    options: dict[str, Any],
    num_bytes: int,
    digest: str,
    flavor: str,
) -> None:
    text = Encoder("0731", flavor).encode(messages, **options).text.encode()
    assert (len(text), sha256(text).hexdigest()[:16]) == (num_bytes, digest), name


def test_v41_prompt_is_the_golden_one() -> None:
    text = Encoder("v4.1").encode(ONE_ROUND, tools=TOOLS, effort="low").text.encode()
    assert (len(text), sha256(text).hexdigest()[:16]) == (2009, "66f2c94a745ea14b")
