"""Whatever stands in a field of a request: it is answered or refused in words, never a failure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..conftest import WEATHER, Serve

FUNCTION = WEATHER["function"]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER]},
    "/v1/messages": {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "w", "input_schema": {"type": "object"}}],
        "max_tokens": 50,
    },
    "/v1/responses": {"input": "hi", "tools": [{"type": "function", **FUNCTION}]},
    "/v1/completions": {"prompt": "hi", "max_tokens": 5},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2, 3]},
}
COMMON = "model tools tool_choice temperature top_p stream parallel_tool_calls"
FIELDS = {
    "/v1/chat/completions": f"{COMMON} messages max_tokens max_completion_tokens n stop seed"
    " stream_options logprobs top_logprobs thinking reasoning_effort chat_template_kwargs"
    " response_format thinking_token_budget structured_outputs guided_json guided_choice",
    "/v1/messages": f"{COMMON} messages max_tokens stop_sequences system thinking output_config",
    "/v1/responses": f"{COMMON} input instructions max_output_tokens reasoning text user"
    " previous_response_id store metadata stop",
    "/v1/completions": "model prompt max_tokens temperature top_p n best_of stop seed stream"
    " stream_options logprobs echo suffix min_tokens response_format return_token_ids",
    "/tokenize": "prompt messages content",
    "/detokenize": "tokens",
}
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.5, float("inf"), float("nan"), 10**30),
    *("", "x", "\ud800", "required", [], {}, [1], [None], ["x"], [[]], [{}], [-1], [2**40]),
    *({"type": None}, {"type": 5}, {"type": "x"}, {"type": "function"}, {"effort": 5}),
    [{"role": "user"}],
    [{"role": "assistant", "content": None}],
    [{"role": "tool", "content": "x"}],
    [{"role": "assistant", "tool_calls": [{}]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": {"a": 1}}],
    [{"type": "function", "function": 5}],
    [{"type": "function_call_output"}],
    [{"type": "reasoning", "content": 5}],
    {"format": {"type": "json_schema"}},
    {"type": "json_schema", "json_schema": {"schema": 5}},
    {"type": "enabled", "budget_tokens": -5},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", GOOD)
async def test_a_field_may_hold_anything(serve: Serve, path: str, *, stream: bool) -> None:
    served = await serve("Hm.</think>Hello.")
    statuses = set()
    for field in FIELDS[path].split():
        for value in VALUES:
            body = {**GOOD[path], "stream": stream, field: value}
            response = await served.http.post(path, content=json.dumps(body))
            statuses.add(response.status_code)
            assert response.status_code in (200, 400), (field, value, response.text)
            assert "the gateway failed" not in response.text, (field, value)
            if response.status_code == 400:
                assert response.json()["error"]["message"], (field, value)
    assert statuses == {200, 400}
    assert not served.gateway.running
