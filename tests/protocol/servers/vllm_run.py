"""Our parsers behind vLLM's own base classes, found by its own plug-in flag."""

import json
import types

from common import CALL, HELD, TOOLS, Streamed, real_structural_tag, report
from protocol_peers import _Record, stand_in

for name in ("torch", "xgrammar", "openai", "transformers", "partial_json_parser"):
    stand_in(name, real=set())
real = {
    "vllm.parser.abstract_parser",
    "vllm.reasoning.abs_reasoning_parsers",
    "vllm.tool_parsers.abstract_tool_parser",
    "vllm.utils.collection_utils",
    "vllm.utils.import_utils",
}
stand_in("vllm", real=real)
import vllm.entrypoints.generate.base.protocol as protocol  # noqa: E402
import vllm.reasoning  # noqa: E402
import vllm.reasoning.abs_reasoning_parsers as reasoning_parsers  # noqa: E402

# vLLM's own message classes cannot be had alone: their module imports the engine, and that torch.
for name in (
    *("DeltaFunctionCall", "DeltaMessage", "DeltaToolCall", "ExtractedToolCallInformation"),
    *("FunctionCall", "ToolCall"),
):
    setattr(protocol, name, _Record)
vllm.reasoning.ReasoningParserManager = reasoning_parsers.ReasoningParserManager
from vllm.parser.abstract_parser import DelegatingParser  # noqa: E402
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager  # noqa: E402

THINK_OPEN, THINK_CLOSE, DSML = 6, 7, 8
VOCABULARY = {"<think>": THINK_OPEN, "</think>": THINK_CLOSE, "｜DSML｜": DSML}

ToolParserManager.import_tool_parser("baleen.protocol.plugins.vllm")
tool_parser_cls = ToolParserManager.get_tool_parser("baleen")
reasoning_parser_cls = reasoning_parsers.ReasoningParserManager.get_reasoning_parser("baleen")
assert issubclass(tool_parser_cls, ToolParser)
assert issubclass(reasoning_parser_cls, reasoning_parsers.ReasoningParser)
request = types.SimpleNamespace(
    tools=TOOLS, tool_choice="auto", include_reasoning=True, messages=[], structured_outputs=None
)
tokenizer = types.SimpleNamespace(get_vocab=lambda: VOCABULARY)


def server() -> DelegatingParser:
    """The object that vLLM drives for one request, made of our two parsers."""
    kinds = {"reasoning_parser_cls": reasoning_parser_cls, "tool_parser_cls": tool_parser_cls}
    return type("Served", (DelegatingParser,), kinds)(tokenizer)


def streamed(output: str) -> tuple[str, str, Streamed]:
    parser, calls = server(), Streamed()
    parser._initialize_history_tool_call_cnt = lambda request: None
    reasoning = content = ""
    for place, char in enumerate(output):
        is_last = place == len(output) - 1
        prompt = [1, THINK_OPEN, 2, THINK_CLOSE, 3, THINK_OPEN]
        delta = parser.parse_delta(char, [9], request, prompt, finished=is_last)
        if delta is not None:
            reasoning += delta.reasoning or ""
            content += delta.content or ""
            for call in delta.tool_calls or ():
                calls.add(call.index, call.function.name, call.function.arguments)
    return reasoning, content, calls


StructuralTag = real_structural_tag()
constrained = tool_parser_cls(tokenizer).get_structural_tag(request)
assert isinstance(constrained, StructuralTag), constrained
assert "<｜DSML｜tool_calls>" in constrained.model_dump_json()

whole = tool_parser_cls(tokenizer).extract_tool_calls("Hi." + CALL, request)
parser = reasoning_parser_cls(tokenizer)
assert parser.is_reasoning_end([1, THINK_OPEN, THINK_CLOSE])
assert not parser.is_reasoning_end([1])
assert not parser.is_reasoning_end([THINK_CLOSE, 1, THINK_OPEN]), "a later turn thinks again"
assert parser.extract_content_ids([1, THINK_CLOSE, 3]) == [3]
assert parser.extract_reasoning("hm\n</think>yes", request) == ("hm", "yes")
reasoning, content, calls = streamed("hm\n</think>Hi." + CALL)
assert reasoning == "hm", reasoning
assert streamed("hm</think>" + HELD)[:2] == ("hm", HELD)
assert streamed("a " + HELD)[:2] == ("a " + HELD, "")
report(
    whole=[[c.function.name, json.loads(c.function.arguments)] for c in whole.tool_calls],
    streamed=calls.calls,
    content=[whole.content, content],
)
