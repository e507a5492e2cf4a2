"""Our detector behind SGLang's own base class and its registry."""

import enum
import json

from common import CALL, HELD, TOOLS, Streamed, real_structural_tag, report
from protocol_peers import stand_in

for name in ("orjson", "partial_json_parser", "xgrammar"):
    stand_in(name, real=set())
base = "sglang.srt.function_call"
real = {f"{base}.base_format_detector", f"{base}.core_types", f"{base}.function_call_parser"}
stand_in("sglang", real=real)
import sglang.srt.function_call.function_call_parser as function_call_parser  # noqa: E402
from sglang.srt.function_call.base_format_detector import BaseFormatDetector  # noqa: E402
from sglang.srt.function_call.function_call_parser import FunctionCallParser  # noqa: E402

import baleen.protocol.plugins.sglang as plugin  # noqa: E402


def server() -> FunctionCallParser:
    """The object that SGLang makes for one request."""
    parser = FunctionCallParser(TOOLS, "baleen")
    assert isinstance(parser.detector, BaseFormatDetector)
    return parser


def streamed(output: str) -> tuple[str, Streamed]:
    parser, calls, content = server(), Streamed(), ""
    for piece in [*output, None]:
        text, found = (
            parser.parse_stream_end() if piece is None else parser.parse_stream_chunk(piece)
        )
        content += text
        for call in found:
            calls.add(call.tool_index, call.name, call.parameters)
    sent = parser.detector.streamed_args_for_tool
    assert [json.loads(text) for text in sent] == [arguments for _, arguments in calls.calls]
    return content, calls


assert plugin.BaleenDetector is FunctionCallParser.ToolCallParserEnum["baleen"]
assert server().detector.structure_info()("f").begin.endswith('invoke name="f">\n')
StrictLevel = enum.IntEnum("StrictLevel", ["OFF", "FUNCTION", "PARAMETER"])
function_call_parser.ToolStrictLevel = StrictLevel
StructuralTag = real_structural_tag()
for name, tag in (("baleen", "<｜DSML｜tool_calls>"), ("baleen-v4.1", "<｜DSML｜ calls>")):
    parser = FunctionCallParser(TOOLS, name)
    parser.tool_strict_level = StrictLevel.OFF
    kind, constraint = parser.get_structure_constraint("required", thinking_mode=False)
    assert kind == "structural_tag"
    assert isinstance(constraint, StructuralTag)
    assert tag in constraint.model_dump_json(), constraint
normal_text, whole = server().parse_non_stream("Hi." + CALL)
content, calls = streamed("Hi." + CALL)
assert streamed(HELD)[0] == HELD
assert server().parse_non_stream("no call") == ("no call", [])
report(
    whole=[[c.name, json.loads(c.parameters)] for c in whole],
    streamed=calls.calls,
    content=[normal_text, content],
)
