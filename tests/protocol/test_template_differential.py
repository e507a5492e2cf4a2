"""Prompts of both V4 revisions equal what llama.cpp's chat templates for them render.

The templates know less than the encoders beside the weights. What they render otherwise is not
drawn: system messages later on, or none in front of tools; developer messages; results out of
order; tool results in a request without tools.
"""

import json
import random
from typing import Any

import pytest
from by_path import load_module
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.protocol import Encoder, tokens

jinja2 = pytest.importorskip("jinja2", reason="chat templates need jinja2")
TEMPLATES = {
    "preview": "deepseek-ai-DeepSeek-V4.jinja",
    "0731": "deepseek-ai-DeepSeek-V4-Flash-0731.jinja",
}
TEXTS = ["a", "Köln?", "l\n\nm", "🐋 {x}", "<b>&amp;", "</｜DSML｜parameter>", " "]
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"city": "Köln", "days": 2},
    {"o": {"k": [True, None, 1.5]}, "s": 'q"\\'},
]


@pytest.fixture(scope="module")
def templates() -> dict[str, Any]:
    peer = load_module("benchmarks/peers/llama_cpp.py")
    folder = peer.source() / "models" / "templates"
    if not folder.is_dir():
        pytest.skip("llama.cpp is not there; benchmarks/peers/llama_cpp.py fetches it")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.filters["from_json"] = json.loads
    return {
        revision: environment.from_string((folder / name).read_text("utf-8"))
        for revision, name in TEMPLATES.items()
    }


class Conversations:
    """Draws message lists that end with a question or with results."""

    def __init__(self, dice: random.Random, *, has_tools: bool, has_system: bool) -> None:
        self.dice = dice
        self.has_tools = has_tools
        self.has_system = has_system

    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if self.has_system or self.dice.random() < 0.6:
            found.append({"role": "system", "content": self.dice.choice(TEXTS)})
        found += self.question()
        for number in range(self.dice.randint(0, 4)):
            found += self.answer(number)
        if found[-1]["role"] == "assistant":
            found += self.question()
        return found

    def question(self) -> list[dict[str, Any]]:
        texts = self.dice.choices(TEXTS, k=self.dice.choice((1, 1, 1, 2)))
        return [{"role": "user", "content": text} for text in texts]

    def answer(self, number: int) -> list[dict[str, Any]]:
        message: dict[str, Any] = {"role": "assistant", "content": self.dice.choice(["", *TEXTS])}
        if self.dice.random() < 0.7:
            message["reasoning_content"] = self.dice.choice(TEXTS)
        if not self.has_tools or self.dice.random() < 0.4:
            return [message, *self.question()]
        ids = [f"call_{place:02d}_{number}" for place in range(self.dice.randint(1, 3))]
        message["tool_calls"] = [self.call(call_id) for call_id in ids]
        results = [
            {"role": "tool", "tool_call_id": call_id, "content": self.dice.choice(TEXTS)}
            for call_id in ids
        ]
        return [message, *results]

    def call(self, call_id: str) -> dict[str, Any]:
        arguments = json.dumps(self.dice.choice(ARGUMENTS))
        function = {"name": "get_weather", "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**48), revision=st.sampled_from(sorted(TEMPLATES)))
def test_prompts_equal_those_of_the_chat_templates(
    templates: dict[str, Any], seed: int, revision: str
) -> None:
    dice = random.Random(seed)
    tools = None
    if dice.random() < 0.6:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        names = dice.sample(["get_weather", "now", "say<b>"], k=dice.randint(1, 3))
        tools = [
            {"type": "function", "function": {"name": name, "parameters": schema}} for name in names
        ]
    response_format = {"type": "json_object", "schema": {"a": 1}} if dice.random() < 0.2 else None
    adds_to_system = tools is not None or response_format is not None
    messages = Conversations(
        dice, has_tools=tools is not None, has_system=adds_to_system
    ).messages()
    effort = dice.choice(("high", "max", *(("low",) if revision == "0731" else ())))
    options: dict[str, Any] = {"thinking": dice.random() < 0.7}
    theirs = dict(options, reasoning_effort=effort, tools=tools, add_generation_prompt=True)
    if response_format is not None:
        theirs["response_format"] = response_format
    expected = templates[revision].render(messages=messages, bos_token=tokens.BOS, **theirs)
    prompt = Encoder(revision, "checkpoint").encode(
        messages, tools=tools, effort=effort, response_format=response_format, **options
    )
    assert prompt.text == expected


def test_the_revisions_differ_only_in_their_effort(templates: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "q"}]
    for effort, changes in (("low", False), ("high", True), ("max", True)):
        by_template = {
            template.render(
                messages=messages, thinking=True, reasoning_effort=effort, bos_token=tokens.BOS
            )
            for template in templates.values()
        }
        assert (len(by_template) == 2) == changes
