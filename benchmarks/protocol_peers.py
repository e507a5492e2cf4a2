"""The fifty outputs that broke parsers, read by every parser that can be had.

    python benchmarks/protocol_peers.py

deepseek-recipe runs if it is installed. SGLang and vLLM are fetched by ``protocol_wheels.py``.
Only their parsers are run; whatever else they import is replaced by stand-ins that do nothing, so
neither a GPU nor the rest of the package is needed. Each peer runs in a process of its own. Writes
``benchmarks/results/protocol_peers.csv`` and the table in ``docs/protocol.md``.

A row counts as read right if content, reasoning and calls are (arguments equal as JSON, keys in
order); how a peer labels a call that it could not read does not matter. ``streamed`` means: right
in one piece, another result character by character.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

from by_path import load_module
from protocol_wheels import WheelUnavailable, folder_of

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "tests" / "protocol" / "data" / "adversarial.json"
RESULTS = ROOT / "benchmarks" / "results" / "protocol_peers.csv"
DOCS = ROOT / "docs" / "protocol.md"
NEEDED = {"vllm": ["vllm"], "sglang": ["sglang", "orjson", "partial-json-parser"]}
"""The wheels that a peer is made of, its own first."""
PEERS = ("baleen, ids", "baleen", "recipe", "sglang", "vllm")


class Reading(NamedTuple):
    """What a parser made of an output."""

    reasoning: str
    content: str
    calls: list[tuple[str, str]]


Reader = Callable[[list[str], dict[str, Any], list[dict[str, Any]]], Reading]
"""Reads the pieces of a row's output, given the row and its tools."""


class NotApplicable(Exception):
    """A row is beyond what a parser is made for."""


# --- the parsers -------------------------------------------------------------------------------


def baleen_reader() -> Reader:
    from baleen.protocol import Parser

    def read(pieces: list[str], row: dict[str, Any], tools: list[dict[str, Any]]) -> Reading:
        parser = Parser(tools=tools, **{"thinking": False, **row.get("options", {})})
        for piece in pieces:
            parser.feed(piece)
        turn = parser.finish(row.get("engine_reason", "stop"))
        return Reading(
            turn.reasoning, turn.content, [(c.name, c.arguments) for c in turn.tool_calls]
        )

    return read


def baleen_ids_reader() -> Reader:
    """The same parser, given token ids; ``pieces`` only say whether to feed one by one."""
    from baleen.protocol import Parser
    from baleen.protocol.tokenizing import encoder_for

    tokenizer = load_module("tests/protocol/conftest.py").build_tokenizer()
    plain = encoder_for(tokenizer).encode_text

    def read(pieces: list[str], row: dict[str, Any], tools: list[dict[str, Any]]) -> Reading:
        ids: list[int] = []
        for part in row["input"]:
            is_token_level = isinstance(part, str)
            ids += tokenizer.encode(part).ids if is_token_level else plain(part["text"])
        options = {"thinking": False, **row.get("options", {})}
        parser = Parser(tools=tools, tokenizer=tokenizer, **options)
        for chunk in [ids] if len(pieces) == 1 else [[number] for number in ids]:
            parser.feed(chunk)
        turn = parser.finish(row.get("engine_reason", "stop"))
        return Reading(
            turn.reasoning, turn.content, [(c.name, c.arguments) for c in turn.tool_calls]
        )

    return read


def recipe_reader() -> Reader:
    import deepseek_recipe as recipe

    finish = recipe.InferenceFinishReason

    def read(pieces: list[str], row: dict[str, Any], tools: list[dict[str, Any]]) -> Reading:
        options = row.get("options", {})
        stage = recipe.ThinkingInitialStage.ReasoningStart if options.get("thinking") else None
        body = {"model": "DeepSeek-V4-Pro", "messages": [{"role": "user", "content": "q"}]}
        request = recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions())
        processor = recipe.StreamProcessor(
            recipe.ChatCompletionRequest.chunk_generator(request, "id", "model"),
            recipe.ParsingOptions(
                parse_tool_calls=options.get("calls", True), thinking_initial_stage=stage
            ),
        )
        usage = recipe.PromptUsage(prompt_tokens=1, prompt_cache_hit_tokens=0)
        chunks = processor.push(recipe.InferenceChunk.ready(prompt_usage=usage))
        for piece in pieces:
            chunks += processor.push(recipe.InferenceChunk.text(piece, 1))
        reason = finish.Length if row.get("engine_reason") == "length" else finish.Stop
        chunks += processor.push(recipe.InferenceChunk.finish(reason))
        if not processor.finished:
            chunks += processor.finish()
        deltas = [c["delta"] for x in chunks for c in json.loads(x.to_json())["choices"]]
        cut = row["expected"].get("incomplete") is not None and reason is finish.Length
        return _from_deltas(deltas, drops_last=cut)

    return read


def sglang_reader() -> Reader:
    stand_in("sglang", real={f"sglang.srt.function_call.{name}" for name in SGLANG_MODULES})
    from sglang.srt.function_call.deepseekv4_detector import DeepSeekV4Detector

    def read(pieces: list[str], row: dict[str, Any], tools: list[dict[str, Any]]) -> Reading:
        if row.get("options", {}).get("thinking"):
            raise NotApplicable("this parser is given no reasoning")
        given = [_namespace(tool) for tool in tools]
        detector = DeepSeekV4Detector()
        if len(pieces) == 1:
            result = detector.detect_and_parse(pieces[0], given)
            return Reading("", result.normal_text, [(c.name, c.parameters) for c in result.calls])
        content, calls = "", {}
        for piece in pieces:
            result = detector.parse_streaming_increment(piece, given)
            content += result.normal_text or ""
            _collect(calls, ((c.tool_index, c.name, c.parameters) for c in result.calls))
        return Reading("", content, [calls[index] for index in sorted(calls)])

    return read


SGLANG_MODULES = (
    "base_format_detector",
    "core_types",
    "utils",
    "deepseekv32_detector",
    "deepseekv4_detector",
)


def vllm_reader() -> Reader:
    real = {
        "vllm.parser.abstract_parser",
        "vllm.parser.deepseek_v4",
        "vllm.parser.deepseek_v32",
        "vllm.parser.utils",
        "vllm.tool_parsers.utils",
        *(
            f"vllm.parser.engine.{path.stem}"
            for path in Path(sys.path[0]).glob("vllm/parser/engine/*.py")
            if path.stem != "__init__"
        ),
    }
    others = ("torch", "xgrammar", "openai", "pydantic", "transformers", "partial_json_parser")
    for name in others:
        stand_in(name, real=set())
    stand_in("vllm", real=real)
    import vllm.parser.deepseek_v4 as module
    import vllm.parser.engine.parser_engine as engine

    def properties(tools: Any, name: str) -> Any:
        found = [t.function.parameters for t in tools or () if t.function.name == name]
        return found[0].get("properties", {}) if found else {}

    for holder in (module, engine):
        holder.find_tool_properties = properties
        holder.find_tool_name = lambda tools, name: any(
            t.function.name == name for t in tools or ()
        )
    engine.make_tool_call_id = lambda *args, **more: "id"
    for name in ("DeltaMessage", "DeltaToolCall", "DeltaFunctionCall"):
        setattr(engine, name, _Record)

    def read(pieces: list[str], row: dict[str, Any], tools: list[dict[str, Any]]) -> Reading:
        thinking = bool(row.get("options", {}).get("thinking"))
        given = [_namespace(tool) for tool in tools]
        tokenizer = types.SimpleNamespace(get_vocab=dict, all_special_tokens=[])
        parser = module.DeepSeekV4Parser(
            tokenizer, given or None, chat_template_kwargs={"thinking": thinking}
        )
        parser.skip_tool_parsing = not row.get("options", {}).get("calls", True)
        deltas = [
            parser._events_to_delta(parser._feed(piece, []), finished=False) for piece in pieces
        ]
        deltas.append(parser._events_to_delta(parser._engine.finish(), finished=True))
        return _from_vllm([delta for delta in deltas if delta is not None])

    return read


class _Record:
    """A message of vLLM's: the fields it was given, None for all others."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _from_vllm(deltas: list[Any]) -> Reading:
    calls: dict[int, tuple[str, str]] = {}
    for delta in deltas:
        listed = delta.tool_calls or ()
        _collect(calls, ((c.index, c.function.name, c.function.arguments) for c in listed))
    return Reading(
        "".join(delta.reasoning or "" for delta in deltas),
        "".join(delta.content or "" for delta in deltas),
        [calls[index] for index in sorted(calls)],
    )


READERS = {
    "baleen": baleen_reader,
    "baleen, ids": baleen_ids_reader,
    "recipe": recipe_reader,
    "sglang": sglang_reader,
    "vllm": vllm_reader,
}


def _collect(calls: dict[int, tuple[str, str]], deltas: Iterable[tuple[int, Any, str]]) -> None:
    for index, name, arguments in deltas:
        known_name, known = calls.get(index, ("", ""))
        calls[index] = (name or known_name, known + (arguments or ""))


def _from_deltas(deltas: list[dict[str, Any]], *, drops_last: bool) -> Reading:
    calls: dict[int, tuple[str, str]] = {}
    for delta in deltas:
        for call in delta.get("tool_calls") or ():
            function = call.get("function", {})
            _collect(calls, [(call["index"], function.get("name"), function.get("arguments"))])
    listed = [calls[index] for index in sorted(calls)]
    return Reading(
        "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "".join(delta.get("content") or "" for delta in deltas),
        # A client sees the reason "length" and knows that the last call is incomplete.
        listed[:-1] if drops_last else listed,
    )


def _namespace(tool: dict[str, Any]) -> Any:
    function = {"strict": False, "description": None, **tool["function"]}
    return types.SimpleNamespace(type="function", function=types.SimpleNamespace(**function))


# --- stand-ins ---------------------------------------------------------------------------------


class _Anything(type):
    """A class whose every attribute is such a class, and whose objects are false and callable."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return make_stand_in(name)

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __bool__(cls) -> bool:
        return False


def make_stand_in(name: str) -> Any:
    def init(self: Any, *args: Any, **fields: Any) -> None:
        self.__dict__.update(fields)

    def get(self: Any, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return make_stand_in(attribute)

    def call(self: Any, *args: Any, **more: Any) -> Any:
        # As a decorator a stand-in leaves what it decorates alone.
        return args[0] if args and callable(args[0]) else self

    members = {"__init__": init, "__getattr__": get, "__call__": call, "__bool__": lambda s: False}
    return _Anything(name, (), members)


class _StandIns:
    """Finds stand-ins for all modules of a package but the real ones."""

    def __init__(self, package: str, real: set[str]) -> None:
        self._package = package
        self._real = real

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._package and not name.startswith(f"{self._package}."):
            return None
        if name in self._real:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        folder = Path(sys.path[0], *spec.name.split("."))
        module.__path__ = [str(folder)]
        module.__getattr__ = make_stand_in  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def stand_in(package: str, *, real: set[str]) -> None:
    """Replace a package, all but the real modules, by stand-ins."""
    sys.meta_path.insert(0, _StandIns(package, real))  # type: ignore[arg-type]


# --- judging -----------------------------------------------------------------------------------


def verdict(expected: dict[str, Any], whole: Reading | str, streamed: Reading | str) -> str:
    if isinstance(whole, str):
        return f"error: {whole}" if whole else "n/a"
    is_right = _is_right(expected, whole)
    if isinstance(streamed, str) or not _same(whole, streamed):
        return "streamed" if is_right else "wrong, streamed differently"
    return "right" if is_right else "wrong"


def _is_right(expected: dict[str, Any], reading: Reading) -> bool:
    calls = [(name, arguments) for name, arguments, _ in expected["calls"]]
    return _same(Reading(expected["reasoning"], expected["content"], calls), reading)


def _same(first: Reading, second: Reading) -> bool:
    return (
        first[:2] == second[:2]
        and len(first.calls) == len(second.calls)
        and all(
            name == other and _value(arguments) == _value(others)
            for (name, arguments), (other, others) in zip(first.calls, second.calls, strict=True)
        )
    )


def _value(arguments: str) -> Any:
    """Arguments as a value; numbers keep their spelling, since losing it is one of the rows."""
    try:
        return json.loads(arguments, parse_float=str, parse_constant=lambda name: [name])
    except ValueError:
        return ("not JSON", arguments)


def text_of(row: dict[str, Any]) -> str:
    return "".join(part if isinstance(part, str) else part["text"] for part in row["input"])


def judge(reader: Reader) -> dict[str, str]:
    data = json.loads(ROWS.read_text("utf-8"))
    tools = [{"type": "function", "function": tool} for tool in data["tools"]]
    verdicts = {}
    for row in data["rows"]:
        given = tools if row.get("schema", True) else []
        readings: list[Reading | str] = []
        for pieces in ([text_of(row)], list(text_of(row))):
            try:
                readings.append(reader(pieces, row, given))
            except NotApplicable:
                readings.append("")
            except Exception as error:
                readings.append(type(error).__name__)
        verdicts[row["row"]] = verdict(row["expected"], *readings)
    return verdicts


# --- the table ---------------------------------------------------------------------------------


def judge_apart(peer: str, libraries: list[str]) -> dict[str, str] | None:
    """Judge a peer in a process of its own; None if it cannot be had."""
    command = [sys.executable, __file__, "--judge", peer, *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{peer} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    verdicts: dict[str, str] = json.loads(done.stdout)
    return verdicts


def table(columns: dict[str, dict[str, str]]) -> str:
    rows = json.loads(ROWS.read_text("utf-8"))["rows"]
    lines = [f"| # | output | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        cells = [columns[peer][row["row"]] for peer in columns]
        lines.append(f"| {row['row']} | {row['what']} | {' | '.join(cells)} |")
    right = [sum(v == "right" for v in column.values()) for column in columns.values()]
    lines.append(f"| | **right, of {len(rows)}** | {' | '.join(map(str, right))} |")
    return "\n".join(lines)


def write_docs(text: str) -> None:
    page = DOCS.read_text("utf-8")
    head, begin, rest = page.partition("<!-- peers: made by benchmarks/protocol_peers.py -->\n")
    _, end, tail = rest.partition("<!-- end of peers -->")
    if begin and end:
        DOCS.write_text(f"{head}{begin}{text}\n{end}{tail}", encoding="utf-8")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--judge", nargs="+", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.judge:
        peer, *libraries = options.judge
        sys.path[:0] = libraries
        print(json.dumps(judge(READERS[peer]())))
        return
    columns: dict[str, dict[str, str]] = {}
    for peer in PEERS:
        if peer == "recipe" and importlib.util.find_spec("deepseek_recipe") is None:
            continue
        try:
            libraries = [str(folder_of(name)) for name in NEEDED.get(peer, ())]
        except WheelUnavailable as error:
            print(f"{peer} is left out: {error}", file=sys.stderr)
            continue
        found = judge_apart(peer, libraries)
        if found is not None:
            columns[peer] = found
    text = table(columns)
    print(text)
    write_docs(text)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", *columns])
        for number in columns["baleen"]:
            writer.writerow([number, *(column[number] for column in columns.values())])


if __name__ == "__main__":
    main()
