"""The events of all three dialects are those of the published API library for the same output.

Ids, times and the extension object are masked; neighbouring deltas of one kind are joined, because
how an output is cut into deltas depends on how it was cut into tokens.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from deepseek_recipe import (
    ChatCompletionRequest,
    ConversionOptions,
    InferenceChunk,
    InferenceFinishReason,
    MessagesRequest,
    PromptUsage,
    ResponsesRequest,
    StreamProcessor,
)

from ..conftest import CALL, WEATHER, Serve, Served

FUNCTION = WEATHER["function"]
OUTPUTS = {
    "calls": (CALL, None),
    "plain": ("Think.</think>Hello", None),
    "no reasoning": ("</think>Hello", None),
    "empty": ("Hm.</think>", None),
    "call without prose": (CALL.replace("Checking.", ""), None),
    "call without reasoning": (CALL.replace("Two lookups.", ""), None),
    "no arguments": (
        'a</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n'
        "</｜DSML｜tool_calls>",
        None,
    ),
    "cut in a call": (CALL, 43),
    "cut in reasoning": (CALL, 3),
    "cut in content": ("Think.</think>Hello there, who are you", 12),
}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [WEATHER],
    },
    "/v1/messages": {
        "max_tokens": 4000,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [
            {
                "name": "get_weather",
                "description": "d",
                "input_schema": FUNCTION["parameters"],
            }
        ],
    },
    "/v1/responses": {"input": "hi", "tools": [{"type": "function", **FUNCTION}]},
}
THINKING_OFF: dict[str, Any] = {
    "/v1/chat/completions": {"thinking": {"type": "disabled"}},
    "/v1/messages": {"thinking": {"type": "disabled"}},
    "/v1/responses": {"reasoning": {"effort": "none"}},
}
REQUESTS = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/messages": MessagesRequest,
    "/v1/responses": ResponsesRequest,
}
MASKED = {
    "id": "ID",
    "item_id": "ID",
    "call_id": "ID",
    "created": 0,
    "created_at": 0,
    "completed_at": 0,
    "encrypted_content": "E",
    "signature": "S",
    "sequence_number": 0,
}
COUNTS = re.compile("tokens$")


def masked(value: Any) -> Any:
    """Without what differs from run to run; token counts depend on the tokenizer."""
    if isinstance(value, list):
        return [masked(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: MASKED[key] if key in MASKED and inner not in (None, "") else masked(inner)
        for key, inner in value.items()
        if key != "baleen" and not COUNTS.search(key) and key != "completion_tokens_details"
    }


def joined(events: list[Any]) -> list[Any]:
    """Neighbouring deltas of one kind as one."""
    found: list[Any] = []
    for event in map(masked, events):
        place, text = _text_of(event)
        if text is not None and found and _text_of(found[-1])[0] == place:
            _set_text(found[-1], _text_of(found[-1])[1] + text)
        else:
            found.append(event)
    return found


def _holder(event: Any) -> tuple[Any, str]:
    """Where the text of a delta is, if the event is one."""
    if "choices" in event:
        choice = event["choices"][0]
        delta = choice["delta"]
        if "role" in delta or choice["finish_reason"]:
            return None, ""
        for field in ("content", "reasoning_content"):
            if delta.get(field) is not None:
                return delta, field
        function = delta["tool_calls"][0]["function"]
        return (None, "") if "name" in function else (function, "arguments")
    delta = event.get("delta")
    if isinstance(delta, str):
        return event, "delta"
    if isinstance(delta, dict):
        for field in ("text", "thinking", "partial_json"):
            if field in delta:
                return delta, field
    return None, ""


def _text_of(event: Any) -> tuple[Any, Any]:
    holder, field = _holder(event)
    if holder is None:
        return None, None
    copy = json.loads(json.dumps(event))
    inner, _ = _holder(copy)
    text = inner[field]
    inner[field] = ""
    return json.dumps(copy), text


def _set_text(event: Any, text: str) -> None:
    holder, field = _holder(event)
    holder[field] = text


def reference(path: str, body: dict[str, Any], text: str, *, is_cut: bool) -> list[Any]:
    kind = REQUESTS[path]
    request = kind({"model": "DeepSeek-V4-Pro", **body}).convert(ConversionOptions())
    options = request.parsing_options
    processor = StreamProcessor(kind.chunk_generator(request, "ID", "MODEL"), options)
    events = list(
        processor.push(
            InferenceChunk.ready(
                prompt_usage=PromptUsage(prompt_tokens=20, prompt_cache_hit_tokens=0)
            )
        )
    )
    for start in range(0, len(text), 5):
        events += processor.push(InferenceChunk.text(text[start : start + 5], 2))
    reason = InferenceFinishReason.Length if is_cut else InferenceFinishReason.Stop
    events += processor.push(InferenceChunk.finish(reason))
    if not processor.finished:
        events += processor.finish()
    return [json.loads(event.to_json()) for event in events]


async def ours(served: Served, path: str, body: dict[str, Any]) -> list[Any]:
    response = await served.post(path, {"model": "MODEL", **body, "stream": True})
    assert response.status_code == 200, response.text
    blocks = [block for block in response.text.split("\n\n") if block and block[0] != ":"]
    events = []
    for block in blocks:
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if lines["data"] == "[DONE]":
            continue
        events.append(json.loads(lines["data"]))
        if "event" in lines:
            assert lines["event"] == events[-1]["type"]
    numbers = [event["sequence_number"] for event in events if "sequence_number" in event]
    assert numbers == list(range(len(numbers)))
    return events


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("name", list(OUTPUTS))
async def test_events_are_the_reference_s(serve: Serve, path: str, name: str) -> None:
    text, limit = OUTPUTS[name]
    served = await serve(text, recovers=False)
    limit_name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body = {**BODIES[path], limit_name: limit or 4000, "stream": True}
    events = await ours(served, path, body)
    sampled = served.upstream.asked[0]
    said = text if limit is None else _text_until(served, text, limit)
    assert sampled.max_tokens == (limit or 4000)
    expected = reference(path, body, said, is_cut=limit is not None)
    assert joined(events) == joined(expected)


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("text", ["Hello", "", CALL.partition("</think>")[2]])
async def test_events_without_thinking_are_the_reference_s(
    serve: Serve, path: str, text: str
) -> None:
    served = await serve(text, recovers=False)
    body = {**BODIES[path], **THINKING_OFF[path], "stream": True}
    if path == "/v1/messages":
        body["max_tokens"] = 4000
    events = await ours(served, path, body)
    assert joined(events) == joined(reference(path, body, text, is_cut=False))


def _text_until(served: Served, text: str, limit: int) -> str:
    from baleen.server.upstreams.scripted import segments_of

    upstream = served.upstream
    ids = upstream._encoder.encode(segments_of(text))[:limit]
    return "".join(part for part, _ in served.gateway.vocabulary.segments_of(ids))
