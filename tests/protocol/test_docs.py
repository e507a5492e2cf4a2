"""The examples of docs/protocol.md run as they stand."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from baleen.protocol import tokens

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
ANSWER = (
    "One look-up.</think>Checking.\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Köln</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>" + tokens.EOS
)


def test_the_examples_of_the_page_run(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sampled_ids = tokenizer.encode(ANSWER, add_special_tokens=False).ids

    def sample(prompt_ids: Iterable[int]) -> list[int]:
        assert list(prompt_ids)[-1] == tokenizer.token_to_id(tokens.THINK_OPEN)
        return list(sampled_ids)

    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Weather in Cologne?"}]
    names: dict[str, Any] = {
        "messages": messages,
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": schema}}],
        "tokenizer": tokenizer,
        "sample": sample,
        "sampled_ids": sampled_ids,
        "api_key": "key",
        "history": messages,
    }
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    turn, store = names["turn"], names["store"]
    try:
        assert [call.name for call in turn.tool_calls] == ["get_weather"]
        said = {"role": "assistant", "content": turn.content, "tool_calls": []}
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in turn.tool_calls
        ]
        result = {"role": "tool", "tool_call_id": turn.tool_calls[0].id, "content": "sun"}
        prompt = names["encoder"].encode(
            [*messages, said, result],
            tools=names["tools"],
            restore=lambda message: store.restore(message, "key"),
        )
        begin = names["ids"] + sampled_ids
        assert prompt.token_ids(tokenizer)[: len(begin)] == begin, "the sampled tokens come back"
    finally:
        store.close()
    assert len(BLOCKS) == 3
