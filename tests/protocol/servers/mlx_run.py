"""Our parser where mlx-lm looks for its own: by the name in a model's tokenizer_config.json."""

import json
import sys
import types
from pathlib import Path

import transformers.utils  # torch looks through all modules and must not meet a stand-in
from common import CALL, SCHEMA, report
from protocol_peers import stand_in

assert transformers.AutoTokenizer

stand_in("mlx", real=set())
stand_in("mlx_lm", real={"mlx_lm.server", "mlx_lm.tokenizer_utils", "mlx_lm.tool_parsers"})
import mlx_lm._version as version  # noqa: E402

version.__version__ = "0"
from mlx_lm.server import ToolCallFormatter  # noqa: E402
from mlx_lm.tokenizer_utils import load  # noqa: E402

import baleen.protocol.plugins.mlx  # noqa: E402, F401

tokenizer = load(Path(sys.argv[2]))
assert tokenizer.has_tool_calling
start, end = tokenizer.tool_call_start, tokenizer.tool_call_end
content, _, block = CALL.partition(start)
inside = block.removesuffix(end)
definition = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
found = {}
for streams in (False, True):
    formatter = ToolCallFormatter(tokenizer.tool_parser, [definition], streams)
    calls = formatter([inside, "cut off"])
    assert [call["id"][:8] for call in calls] == ["call_00_", "call_01_"]
    found[streams] = [
        [call["function"]["name"], json.loads(call["function"]["arguments"])] for call in calls
    ]
report(whole=found[False], streamed=found[True], content=["Hi.", "Hi."])
assert isinstance(tokenizer.tool_parser, types.FunctionType)
