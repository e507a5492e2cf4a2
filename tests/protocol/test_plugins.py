"""Our parser behind other servers' own base classes, as they stand in the servers' wheels."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import protocol_wheels
import pytest
from tokenizers import Tokenizer

from baleen.protocol import parse
from baleen.protocol.plugins.definitions import chat_definitions
from baleen.protocol.plugins.mlx import parse_tool_call, tool_call_end, tool_call_start
from baleen.protocol.plugins.reasoning_split import ReasoningSplit

HERE = Path(__file__).parent


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


@pytest.mark.timeout(2400)  # the first run on a machine fetches the servers' wheels
@pytest.mark.parametrize("server", ["vllm", "sglang", "mlx-lm"])
def test_plugins_serve_the_real_base_classes(
    server: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    try:
        folder = protocol_wheels.folder_of(server)
        protocol_wheels.folder_of("xgrammar")  # whose tags both servers take
    except protocol_wheels.WheelUnavailable as error:
        pytest.skip(str(error))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "tool_parser_type": "baleen"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    script = HERE / "servers" / f"{server.partition('-')[0]}_run.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
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
