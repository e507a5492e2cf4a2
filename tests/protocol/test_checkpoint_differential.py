"""Random conversations encode as the encoders that vLLM ships with the weights' prompts do.

vLLM has adapted both files a little: the reasoning's field may be named otherwise, and a V4 prompt
that ends with a system message gets an answer's header. Such conversations are not drawn.
"""

import json
import random
from types import ModuleType
from typing import Any

import protocol_wheels
import pytest
from by_path import load_module
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.protocol import Encoder
from baleen.protocol.errors import MessageError

TEXTS = [
    "",
    "a",
    "Köln?",
    "l\n\n",
    "<｜User｜></think>",
    "</｜DSML｜parameter>",
    "🐋 {x}",
    "\u2028",
]
ARGUMENTS = ['{"a": "x"}', "{}", '{"n": 1e-7, "m": 18446744073709551616}', '{"o": {"k": [true]}}']


@pytest.fixture(scope="module")
def encoders() -> dict[str, ModuleType]:
    try:
        folder = protocol_wheels.folder_of("vllm") / "vllm" / "tokenizers"
    except protocol_wheels.WheelUnavailable as error:
        pytest.skip(str(error))
    return {
        "0731": load_module(folder / "deepseek_v4_encoding.py"),
        "v4.1": load_module(folder / "deepseek_v41_encoding.py"),
    }


class Conversations:
    """Draws message lists."""

    def __init__(self, dice: random.Random, revision: str) -> None:
        self.dice = dice
        self.is_v41 = revision == "v4.1"

    def text(self) -> str:
        return "".join(self.dice.choices(TEXTS, k=self.dice.choice((1, 1, 2))))

    def messages(self) -> list[dict[str, Any]]:
        draw, found = self.dice.random, []
        if draw() < 0.5:
            found.append({"role": "system", "content": self.text()})
        for number in range(self.dice.randint(0, 4)):
            found += self.round(number)
        found.append({"role": "user", "content": self.text()})
        if draw() < 0.2:
            found[-1]["task"] = self.dice.choice(("action", "query", "domain"))
        elif draw() < 0.4:
            found += self.answer(9)
        return found

    def round(self, number: int) -> list[dict[str, Any]]:
        found, draw = [], self.dice.random
        found.append({"role": "user", "content": self.text()})
        if draw() < 0.15:
            found.append({"role": "developer", "content": "d" + self.text()})
        if self.is_v41 and draw() < 0.2:
            found.append({"role": "system", "content": self.text()})
        if draw() < 0.1:
            found.append({"role": "latest_reminder", "content": self.text()})
        return found if draw() < 0.2 else [*found, *self.answer(number)]

    def answer(self, number: int) -> list[dict[str, Any]]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text()}
        if self.dice.random() < 0.6:
            message["reasoning_content"] = message["reasoning"] = self.text()
        if self.dice.random() < 0.1:
            message["wo_eos"] = True
        if self.dice.random() < 0.5:
            return [message]
        calls = [f"c{number}_{place}" for place in range(self.dice.randint(1, 3))]
        message["tool_calls"] = [self.call(call_id) for call_id in calls]
        results = [
            {"role": "tool", "tool_call_id": call_id, "content": self.text()} for call_id in calls
        ]
        self.dice.shuffle(results)
        return [message, *results[self.dice.random() < 0.1 :]]

    def call(self, call_id: str) -> dict[str, Any]:
        arguments: Any = self.dice.choice(ARGUMENTS)
        if self.is_v41 and self.dice.random() < 0.2:
            arguments = self.dice.choice((json.dumps(arguments), "{", "", "[1]", {"a": 1}))
        function = {"name": "f", "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}


@pytest.mark.timeout(2400)  # the first run on a machine fetches vLLM's wheel
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**48), revision=st.sampled_from(["0731", "v4.1"]))
def test_prompts_equal_those_of_the_encoders_beside_the_weights(
    encoders: dict[str, ModuleType], seed: int, revision: str
) -> None:
    dice = random.Random(seed)
    messages = Conversations(dice, revision).messages()
    thinking, keeps = dice.random() < 0.7, dice.random() < 0.3
    effort = dice.choice(
        (None, "low", "high", "max", *((33, "xhigh") if revision == "v4.1" else ()))
    )
    tools = (
        [{"type": "function", "function": {"name": "f", "x": 1}}] if dice.random() < 0.5 else None
    )
    theirs = [dict(message) for message in messages]
    if tools:
        if theirs[0]["role"] != "system":
            theirs.insert(0, {"role": "system", "content": ""})
        theirs[0]["tools"] = tools
    expected = encoders[revision].encode_messages(
        theirs,
        thinking_mode="thinking" if thinking else "chat",
        drop_thinking=not keeps,
        reasoning_effort=effort,
    )
    prompt = Encoder(revision, "checkpoint").encode(
        messages, tools=tools, thinking=thinking, effort=effort, keep_reasoning=keeps
    )
    assert prompt.text == expected


def test_v4_refuses_what_its_encoder_breaks_on(encoders: dict[str, ModuleType]) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[1]"}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    with pytest.raises(AttributeError):
        encoders["0731"].encode_messages(messages, thinking_mode="chat")
    with pytest.raises(MessageError, match="no object"):
        Encoder("0731", "checkpoint").encode(messages, thinking=False)
