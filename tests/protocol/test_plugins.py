"""Our parser behind other servers' own base classes.

The base classes come out of the servers' wheels, which are large: name a folder that holds them in
BALEEN_PEER_WHEELS to run these tests (``pip download --no-deps vllm sglang mlx-lm``).
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from baleen.protocol import parse
from baleen.protocol.plugins.definitions import chat_definitions
from baleen.protocol.plugins.mlx import parse_tool_call, tool_call_end, tool_call_start
from baleen.protocol.plugins.reasoning_split import ReasoningSplit

ROOT = Path(__file__).parents[2]
CALL = (
    "\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="a" string="true">x "y"</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="n" string="true">5</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    '<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls>"
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}
EXPECTED = [["f", {"a": 'x "y"', "n": 5}], ["g", {}]]

PRELUDE = """
import json, sys, types
sys.path.insert(0, {folder!r})
sys.path.insert(1, {benchmarks!r})
from protocol_peers import _Record, stand_in
CALL = json.loads({call!r})
function = types.SimpleNamespace(name="f", parameters=json.loads({schema!r}))
TOOLS = [types.SimpleNamespace(type="function", function=function)]
"""
VLLM = """
for name in ("torch", "xgrammar", "openai", "transformers", "pydantic", "partial_json_parser"):
    stand_in(name, real=set())
real = {"vllm.tool_parsers.abstract_tool_parser", "vllm.reasoning.abs_reasoning_parsers"}
stand_in("vllm", real=real)
import vllm.entrypoints.generate.base.protocol as protocol
for name in ("DeltaFunctionCall", "DeltaMessage", "DeltaToolCall", "ExtractedToolCallInformation",
             "FunctionCall", "ToolCall"):
    setattr(protocol, name, _Record)
import vllm.reasoning, vllm.reasoning.abs_reasoning_parsers as real_reasoning
vllm.reasoning.ReasoningParserManager = real_reasoning.ReasoningParserManager
import baleen.protocol.plugins.vllm as plugin
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager
assert issubclass(ToolParserManager.get_tool_parser("baleen"), ToolParser)
request = types.SimpleNamespace(tools=TOOLS, tool_choice="auto")
tokenizer = types.SimpleNamespace(get_vocab=lambda: {"</think>": 7})
whole = plugin.BaleenToolParser(tokenizer).extract_tool_calls("Hi." + CALL, request)
parser = plugin.BaleenToolParser(tokenizer)
deltas, text = [], ""
for char in "Hi." + CALL:
    deltas.append(parser.extract_tool_calls_streaming(text, text + char, char, [], [], [], request))
    text += char
streamed = {}
for delta in deltas:
    for call in (delta.tool_calls if delta else None) or ():
        known = streamed.setdefault(call.index, ["", ""])
        known[0] += call.function.name or ""
        known[1] += call.function.arguments or ""
reasoning = plugin.BaleenReasoningParser(tokenizer)
assert reasoning.is_reasoning_end([1, 7]) and not reasoning.is_reasoning_end([1])
assert reasoning.extract_content_ids([1, 7, 3]) == [3]
assert reasoning.extract_reasoning("hm\\n</think>yes", request) == ("hm", "yes")
print(json.dumps({
    "whole": [[c.function.name, json.loads(c.function.arguments)] for c in whole.tool_calls],
    "streamed": [[n, json.loads(a)] for n, a in streamed.values()],
    "content": [whole.content, "".join((d.content or "") if d else "" for d in deltas)],
}))
"""
SGLANG = """
for name in ("orjson", "partial_json_parser", "xgrammar"):
    stand_in(name, real=set())
base = "sglang.srt.function_call"
stand_in("sglang", real={f"{base}.base_format_detector", f"{base}.core_types"})
import sglang.srt.function_call.function_call_parser as registry
registry.FunctionCallParser = type("FunctionCallParser", (), {"ToolCallParserEnum": {}})
import baleen.protocol.plugins.sglang as plugin
detector_class = registry.FunctionCallParser.ToolCallParserEnum["baleen"]
whole = detector_class().detect_and_parse("Hi." + CALL, TOOLS)
detector, streamed, content = detector_class(), {}, ""
for char in "Hi." + CALL:
    result = detector.parse_streaming_increment(char, TOOLS)
    content += result.normal_text
    for call in result.calls:
        known = streamed.setdefault(call.tool_index, ["", ""])
        known[0] += call.name or ""
        known[1] += call.parameters
assert detector.streamed_args_for_tool == [known[1] for known in streamed.values()]
assert detector_class().structure_info()("f").begin.endswith('invoke name="f">\\n')
print(json.dumps({
    "whole": [[c.name, json.loads(c.parameters)] for c in whole.calls],
    "streamed": [[n, json.loads(a)] for n, a in streamed.values()],
    "content": [whole.normal_text, content],
}))
"""


@pytest.mark.parametrize(("server", "script"), [("vllm", VLLM), ("sglang", SGLANG)])
def test_plugins_serve_the_real_base_classes(server: str, script: str, tmp_path: Path) -> None:
    folder = os.environ.get("BALEEN_PEER_WHEELS")
    wheels = sorted(Path(folder).glob(f"{server}-*.whl")) if folder else []
    if not wheels:
        pytest.skip(f"no wheel of {server} in BALEEN_PEER_WHEELS")
    wanted = (f"{server}/tool_parsers/", f"{server}/reasoning/", "sglang/srt/function_call/")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(tmp_path, [n for n in archive.namelist() if n.startswith(wanted)])
    prelude = PRELUDE.format(
        folder=str(tmp_path),
        benchmarks=str(ROOT / "benchmarks"),
        call=json.dumps(CALL),
        schema=json.dumps(SCHEMA),
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"whole": EXPECTED, "streamed": EXPECTED, "content": ["Hi.", "Hi."]}


def test_mlx_gets_the_calls_of_a_block() -> None:
    sys.modules.pop("mlx_lm.tool_parsers.baleen", None)
    inside = CALL.strip().removeprefix(tool_call_start).removesuffix(tool_call_end)
    definition = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    calls = parse_tool_call(inside, [definition])
    assert [[call["name"], call["arguments"]] for call in calls] == EXPECTED
    with pytest.raises(ValueError, match="no complete tool call"):
        parse_tool_call("nothing here")


@pytest.mark.parametrize(
    ("output", "reasoning", "rest"),
    [
        ("hm\n\n</think>\n\nyes", "hm", "\n\nyes"),
        ("hm" + CALL, "hm", CALL.lstrip("\n")),
        ("a < b </thin", "a < b </thin", ""),
        ("</think>", "", ""),
    ],
)
def test_reasoning_is_split_off_however_the_output_is_cut(
    output: str, reasoning: str, rest: str
) -> None:
    for pieces in ([output], list(output)):
        splitter = ReasoningSplit()
        parts = [*(splitter.feed(piece) for piece in pieces), splitter.finish()]
        assert "".join(part.reasoning for part in parts) == reasoning
        assert "".join(part.rest for part in parts) == rest


def test_definitions_are_read_from_objects_and_mappings() -> None:
    class Holder:
        name = "f"
        parameters: Any = SCHEMA

    expected = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    assert chat_definitions([Holder()]) == expected
    assert chat_definitions(expected) == expected
    assert chat_definitions(None) == []
    assert parse(CALL, thinking=False, tools=expected).tool_calls[0].arguments.endswith("5}")
