"""Differential fuzz of the API encoder against the deepseek-recipe package.

    python benchmarks/protocol_fuzz.py --conversations 20000 --seed 1

Each conversation is encoded by both. They must agree on the prompt byte for byte, on which parts of
it are special tokens, and on where the answer starts; or both must refuse, as a rule in the same
words. Differences that are meant are named in ``explained``; the rest is printed, and makes the
exit code 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from typing import Any

import deepseek_recipe as recipe

from baleen.protocol import Encoder, Prompt
from baleen.protocol.errors import MessageError, ProtocolError

TEXTS = [
    *("", "a", "Wetter in Köln?", "line\nline\n\n", "  edge  ", "🐋 日本語", "give me json"),
    *(
        "<｜Assistant｜></think>",
        "｜DSML｜",
        "</｜DSML｜parameter>",
        "<tool_result>x</tool_result>",
    ),
    *(
        "<think>hm</think>",
        "\\ \"quoted\" 'single' \t",
        "\u2028\x00\x7f",
        '{"k": [1]}',
        "<｜end▁of▁sentence｜>",
    ),
]
NAMES = ["f", "get_weather", "a-b_9"]
KEYS = ["city", "k", "", "ö", 'quo"te', "arguments"]
NUMBERS = [
    *("0", "-0", "1", "1.10", "1e5", "1e-5", "1e-7", "12.5e-6", "1e16", "1E+3", "123456789.123"),
    *("18446744073709551615", "18446744073709551616", "-9223372036854775809", "1e400", "5e-324"),
    *("100000000000000000000000", "0.1", "-2.5", "1e-10", "3.0", "0.000012345", "-1.5e-5"),
]
BROKEN = [
    "",
    "{",
    "[1]",
    '"s"',
    "null",
    '{"a": NaN}',
    '{"a": "\\ud800"}',
    "{'a': 1}",
    '{"a":1,}',
    " {} ",
]


class Conversations:
    """Draws request bodies; ``wildness`` is the share of draws that break a rule on purpose."""

    def __init__(self, dice: random.Random, wildness: float = 0.02) -> None:
        self.dice = dice
        self.wildness = wildness

    def wild(self) -> bool:
        return self.dice.random() < self.wildness

    def text(self) -> str:
        return "".join(self.dice.choices(TEXTS, k=self.dice.choice((1, 1, 1, 2))))

    def content(self) -> Any:
        if self.dice.random() < 0.85:
            return self.text()
        parts = [{"type": "text", "text": self.text()} for _ in range(self.dice.randint(0, 3))]
        if self.dice.random() < 0.2:
            parts.append({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}})
        return parts

    def value(self, depth: int = 0) -> str:
        """A JSON value as text, in spellings that Python would not choose."""
        kind = self.dice.randrange(8 if depth < 3 else 5)
        if kind == 0:
            return self.dice.choice(NUMBERS)
        if kind == 1:
            return self.dice.choice(("true", "false", "null"))
        if kind in (2, 3, 4):
            return json.dumps(self.text(), ensure_ascii=self.dice.random() < 0.5)
        if kind == 5:
            return (
                "[" + ", ".join(self.value(depth + 1) for _ in range(self.dice.randint(0, 3))) + "]"
            )
        return self.members(depth + 1)

    def members(self, depth: int = 0) -> str:
        space = self.dice.choice(("", " ", "\n  "))
        pairs = [
            f"{space}{json.dumps(self.dice.choice(KEYS))}:{space}{self.value(depth)}"
            for _ in range(self.dice.choice((0, 1, 1, 2, 3)))
        ]
        return "{" + ",".join(pairs) + "}"

    def arguments(self) -> str:
        return self.dice.choice(BROKEN) if self.dice.random() < 0.1 else self.members()

    def call(self, number: int) -> dict[str, Any]:
        form = self.dice.choice(("call_{:02d}_x", "c{}", "{}", "z-{:x}"))
        call = {
            "id": form.format(number),
            "type": "function",
            "function": {"name": self.dice.choice(NAMES), "arguments": self.arguments()},
        }
        if self.wild():
            call.pop(self.dice.choice(("id", "function")))
        return call

    def assistant_round(self, base: int) -> list[dict[str, Any]]:
        """An assistant message, with its results if it calls."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content()}
        if self.dice.random() < 0.6:
            message["reasoning_content"] = self.text()
        if self.dice.random() < 0.5:
            return [message]
        calls = [self.call(base + self.dice.randrange(200)) for _ in range(self.dice.randint(1, 4))]
        message["tool_calls"] = calls
        if self.dice.random() < 0.5:
            message["content"] = None
        results = [
            {"role": "tool", "tool_call_id": call.get("id", "?"), "content": self.content()}
            for call in calls
        ]
        self.dice.shuffle(results)
        if self.wild():
            results = results[1:]
        if self.wild():
            results.append({"role": "tool", "tool_call_id": "nobody", "content": "x"})
        return [message, *results]

    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.dice.random() < 0.6:
            messages.append({"role": "system", "content": self.content()})
        for number in range(self.dice.choice((0, 1, 1, 2, 3, 4))):
            kind = self.dice.random()
            if kind < 0.75:
                messages.append({"role": "user", "content": self.content()})
            if kind > 0.93:
                messages.append({"role": "latest_reminder", "content": self.text()})
            if 0.2 < kind < 0.26:
                messages.append({"role": "system", "content": self.content()})
            if kind < 0.6:
                messages += self.assistant_round(number * 1000)
        messages.append({"role": "user", "content": self.content()})
        self._spoil(messages)
        return messages

    def _spoil(self, messages: list[dict[str, Any]]) -> None:
        if self.wild():
            messages.pop(self.dice.randrange(len(messages)))
        if messages and self.wild():
            message = self.dice.choice(messages)
            message.pop(self.dice.choice(list(message)))
        if messages and self.wild():
            self.dice.choice(messages)["content"] = None
        if self.dice.random() < 0.08:
            prefix = {
                "role": "assistant",
                "content": self.dice.choice(("", "Once")),
                "prefix": True,
            }
            if self.dice.random() < 0.5:
                prefix["reasoning_content"] = self.text()
            messages.append(prefix)

    def tool(self, number: int) -> dict[str, Any]:
        function: dict[str, Any] = {"name": NAMES[number % len(NAMES)]}
        if self.dice.random() < 0.7:
            function["description"] = self.dice.choice((self.text(), None))
        if self.dice.random() < 0.8:
            schema = {"type": "object", "properties": {"city": {"type": "string"}}}
            if self.dice.random() < 0.3:
                schema["properties"]["n"] = {"minimum": 1e-5, "type": "number", "default": 1e16}
            if self.dice.random() < 0.3:
                schema["required"] = ["city"]
            function["parameters"] = dict(self.dice.sample(list(schema.items()), len(schema)))
        if self.dice.random() < 0.1:
            function["strict"] = self.dice.random() < 0.5
        if self.dice.random() < 0.1:
            function["x-extra"] = 1
        if self.wild():
            function["name"] = self.dice.choice(("", "a b", "f"))
        return {"type": "function", "function": function}

    def body(self) -> dict[str, Any]:
        """A whole request, as the API takes it, without the model's name."""
        body: dict[str, Any] = {"messages": self.messages()}
        if self.dice.random() < 0.4:
            body["thinking"] = {"type": self.dice.choice(("enabled", "disabled", "disabled"))}
        if self.dice.random() < 0.7:
            levels = ("minimal", "low", "low", "medium", "high", "xhigh", "max", "ultra", "none")
            body["reasoning_effort"] = self.dice.choice(levels)
        if self.dice.random() < 0.5:
            body["tools"] = [self.tool(number) for number in range(self.dice.randint(0, 3))]
        if self.dice.random() < 0.3:
            named = {"type": "function", "function": {"name": self.dice.choice(NAMES)}}
            body["tool_choice"] = self.dice.choice(("auto", "none", "required", named))
        if self.dice.random() < 0.15:
            schema = {"type": "object", "properties": {"k": {"type": "string"}}}
            wrapped = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
            plain = {"type": self.dice.choice(("text", "json_object"))}
            body["response_format"] = self.dice.choice((wrapped, plain))
        return body


def theirs(body: dict[str, Any], revision: str) -> tuple[str, Any]:
    """``("ok", (text, specials, start))``, or ``("error", words)``."""
    is_41 = revision == "v4.1"
    model = "DeepSeek-V4.1-Flash" if is_41 else "DeepSeek-V4-Pro"
    try:
        request = recipe.ChatCompletionRequest({"model": model, **body})
        converted = request.convert(recipe.ConversionOptions())
    except recipe.ConversionError as error:
        return "error", json.loads(error.body)["error"]["message"]
    except ValueError as error:
        return "error", f"body: {error}"
    encoding = recipe.DeepseekV41Encoding() if is_41 else recipe.DeepseekV4Encoding()
    rendered = encoding.render_conversation(converted.conversation)
    options = converted.parsing_options
    stage = options.thinking_initial_stage
    start = "calls" if options.starts_in_tool_calls else None if stage is None else stage
    return "ok", (rendered.prompt, rendered.special_ranges, start)


def ours(body: dict[str, Any], revision: str) -> tuple[str, Any]:
    """Like :func:`theirs`."""
    disabled = body.get("thinking", {}).get("type") == "disabled"
    effort = body.get("reasoning_effort")
    if body.get("thinking", {}).get("type") == "enabled" and effort == "none":
        effort = None
    try:
        prompt = Encoder(revision).encode(
            body["messages"],
            tools=body.get("tools"),
            tool_choice=body.get("tool_choice", "auto"),
            thinking=not disabled,
            effort=effort,
            response_format=body.get("response_format"),
        )
    except MessageError as error:
        return "error", error.message
    except ProtocolError as error:
        return "error", str(error)
    return "ok", (prompt.text, special_ranges(prompt), start_of(prompt))


def special_ranges(prompt: Prompt) -> list[tuple[int, int]]:
    ranges, position = [], 0
    for text, is_special in prompt.segments:
        if is_special:
            ranges.append((position, position + len(text)))
        position += len(text)
    return ranges


def start_of(prompt: Prompt) -> Any:
    stage = recipe.ThinkingInitialStage
    if prompt.start == "calls":
        return "calls"
    if not prompt.thinking:
        return None
    if prompt.start is None:
        return stage.ReasoningStart
    return stage.ReasoningContinuation if prompt.start == "reasoning" else stage.ContentContinuation


def explained(body: dict[str, Any], their: tuple[str, Any], our: tuple[str, Any]) -> str | None:
    """Why a difference is meant; None if it is not."""
    if their == ("error", "Thinking mode does not support this tool_choice") and our[0] == "ok":
        return "forced calls are served in thinking mode too"
    if their[0] == our[0] == "error":
        if their[1].startswith("body: "):
            return "both refuse a body of the wrong shape, in words of their own"
        return "both refuse a body with several faults, each for another one"
    return None


def compare(body: dict[str, Any], revision: str) -> tuple[str, Any, Any]:
    """``("same" | reason | "DIFFERENT", theirs, ours)``."""
    their, our = theirs(json.loads(json.dumps(body)), revision), ours(body, revision)
    if their == our:
        return f"same ({their[0]})", their, our
    return explained(body, their, our) or "DIFFERENT", their, our


def report(
    revision: str, body: dict[str, Any], their: tuple[str, Any], our: tuple[str, Any]
) -> None:
    """Print the body, and both answers from shortly before the first difference on."""
    print(revision, json.dumps(body, ensure_ascii=False))
    for name, (kind, answer) in (("theirs", their), ("ours", our)):
        start = 0
        if their[0] == our[0] == "ok":
            pairs = zip(their[1][0], our[1][0], strict=False)
            start = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
        text = answer if kind == "error" else answer[0][max(0, start - 60) : start + 200]
        print(f"  {name}: {kind} {text!r} {'' if kind == 'error' else answer[2]}")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--conversations", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--show", type=int, default=5, help="differences to print")
    options = arguments.parse_args()
    dice = random.Random(options.seed)
    outcomes: Counter[str] = Counter()
    for number in range(options.conversations):
        revision = "v4.1" if number % 4 == 3 else "0731"
        body = Conversations(dice).body()
        outcome, their, our = compare(body, revision)
        outcomes[outcome] += 1
        if outcome == "DIFFERENT" and outcomes[outcome] <= options.show:
            report(revision, body, their, our)
    for outcome, count in outcomes.most_common():
        print(f"{count:8d}  {outcome}")
    return 1 if outcomes["DIFFERENT"] else 0


if __name__ == "__main__":
    sys.exit(main())
