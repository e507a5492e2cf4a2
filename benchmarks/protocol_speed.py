"""How fast the protocol is: parsing per streamed piece, encoding per conversation.

    python benchmarks/protocol_speed.py

Prints a table and writes ``benchmarks/results/protocol_speed.csv``. The published package
deepseek-recipe is measured in the same run when it is installed. Each figure is the least CPU time
of several runs, so that other load on the machine changes little.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baleen.protocol import Encoder, Parser
from baleen.protocol.events import ArgumentsDelta

RESULTS = Path(__file__).parent / "results" / "protocol_speed.csv"
PIECE = 4
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "bash",
            "description": "Run a command",
            "parameters": {
                "type": "object",
                "properties": {"command": {"type": "string"}, "timeout": {"type": "integer"}},
            },
        },
    }
]
HEAD = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="bash">\n'
    '<｜DSML｜parameter name="command" string="true">'
)
TAIL = "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
BODIES = {
    "code": "def f(x):\n    return [i for i in range(x) if i % 2 == 0]\n",
    "html": '<div class="a"><p>text</p><b>x</b></div>\n',
    "prose": "Plain words and nothing else, one after the other. ",
}
SIZES = {"2 KB": 2_000, "40 KB": 40_000, "1 MB": 1_000_000}


def least_cpu_s(work: Callable[[], object], repeats: int) -> float:
    """The least CPU time of some runs."""
    least = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        least = min(least, time.process_time() - start)
    return least


def pieces_of(body: str, size: int) -> list[str]:
    text = HEAD + (body * (size // len(body) + 1))[:size] + TAIL
    return [text[i : i + PIECE] for i in range(0, len(text), PIECE)]


def parse_all(pieces: list[str]) -> None:
    parser = Parser(thinking=False, tools=TOOLS)
    for piece in pieces:
        parser.feed(piece)
    parser.finish()


def parse_all_with_recipe(pieces: list[str]) -> None:
    """The package's processor; it hands out chunks as JSON, so its figure includes that."""
    import deepseek_recipe as recipe

    body = {"model": "DeepSeek-V4-Pro", "messages": [{"role": "user", "content": "q"}]}
    request = recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions())
    processor = recipe.StreamProcessor(
        recipe.ChatCompletionRequest.chunk_generator(request, "id", "model"),
        recipe.ParsingOptions(parse_tool_calls=True),
    )
    usage = recipe.PromptUsage(prompt_tokens=1, prompt_cache_hit_tokens=0)
    processor.push(recipe.InferenceChunk.ready(prompt_usage=usage))
    for piece in pieces:
        for chunk in processor.push(recipe.InferenceChunk.text(piece, 1)):
            chunk.to_json()


def pieces_until_first_delta() -> int:
    """How many pieces after the one that ends the parameter's tag bring the first argument text."""
    parser = Parser(thinking=False, tools=TOOLS)
    parser.feed(HEAD)
    for number in range(1, 100):
        if any(isinstance(event, ArgumentsDelta) for event in parser.feed("abcd")):
            return number
    return -1


def conversation(num_messages: int) -> list[dict[str, Any]]:
    """An agent's history: one task, then calls and results."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are baleen."}]
    messages.append({"role": "user", "content": "Find out why the tests fail, then fix it."})
    number = 0
    while len(messages) < num_messages:
        call_id = f"call_00_{number:020d}0000"
        arguments = json.dumps({"command": f"head -50 src/file_{number}.py", "timeout": 30})
        call = {"name": "bash", "arguments": arguments}
        messages.append(
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "The next file may explain it, so I look at its head. " * 2,
                "tool_calls": [{"id": call_id, "type": "function", "function": call}],
            }
        )
        messages.append({"role": "tool", "tool_call_id": call_id, "content": "a line\n" * 20})
        number += 1
    return messages


def encode_with_recipe(messages: list[dict[str, Any]]) -> str:
    import deepseek_recipe as recipe

    body = {"model": "DeepSeek-V4-Pro", "messages": messages, "tools": TOOLS}
    request = recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions())
    prompt: str = recipe.DeepseekV4Encoding().render_conversation(request.conversation).prompt
    return prompt


def measure(has_recipe: bool) -> list[tuple[str, str, str, float, str]]:
    """Rows of (what, size, who, value, unit)."""
    rows: list[tuple[str, str, str, float, str]] = []
    for name, body in BODIES.items():
        for label, size in SIZES.items():
            pieces = pieces_of(body, size)
            repeats = 3 if size > 100_000 else 9
            seconds = least_cpu_s(lambda p=pieces: parse_all(p), repeats)
            rows.append((f"parse {name}", label, "baleen", seconds / len(pieces) * 1e6, "us/piece"))
            if has_recipe and size <= 40_000:
                seconds = least_cpu_s(lambda p=pieces: parse_all_with_recipe(p), 3)
                rows.append(
                    (f"parse {name}", label, "recipe", seconds / len(pieces) * 1e6, "us/piece")
                )
    rows.append(("first argument delta", "", "baleen", pieces_until_first_delta(), "pieces"))
    encoder = Encoder()
    for num_messages in (10, 100, 1_000, 10_000):
        messages = conversation(num_messages)
        label = f"{num_messages} messages"
        ours = least_cpu_s(lambda m=messages: encoder.encode(m, tools=TOOLS).text, 9)
        rows.append(("encode", label, "baleen", ours * 1e3, "ms"))
        if has_recipe:
            theirs = least_cpu_s(lambda m=messages: encode_with_recipe(m), 9)
            rows.append(("encode", label, "recipe", theirs * 1e3, "ms"))
        prompt = encoder.encode(messages[:-2], tools=TOOLS)
        more = least_cpu_s(lambda p=prompt, m=messages: encoder.extend(p, m[-2:]), 50)
        rows.append(("encode one more turn", label, "baleen", more * 1e3, "ms"))
    return rows


def main() -> None:
    rows = measure(importlib.util.find_spec("deepseek_recipe") is not None)
    for what, size, who, value, unit in rows:
        print(f"{what:22} {size:15} {who:8} {value:10.4f} {unit}")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "size", "who", "value", "unit", "python", "machine", "commit"])
        for row in rows:
            figures = [*row[:3], f"{row[3]:.4f}", row[4]]
            writer.writerow([*figures, platform.python_version(), platform.machine(), commit])
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
