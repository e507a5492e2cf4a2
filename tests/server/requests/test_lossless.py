"""What clients drop or rewrite is restored, and what breaks a prefix is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..conftest import ASKED, CALL, WEATHER, Serve, Served


def answered(first: dict[str, Any], *, drop: bool = True, spaced: bool = False) -> list[Any]:
    """A history behind a first answer, as careless clients send it."""
    message = dict(first["choices"][0]["message"])
    if drop:
        message.pop("reasoning_content", None)
    calls = json.loads(json.dumps(message["tool_calls"]))
    for call in calls if spaced else ():
        arguments = json.loads(call["function"]["arguments"])
        again = dict(reversed(arguments.items()))
        call["function"]["arguments"] = json.dumps(again, separators=(" ,", ":"), indent=1)
    message["tool_calls"] = calls
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in reversed(calls)
    ]
    return [*ASKED, message, *results]


async def second(served: Served, history: list[Any], **fields: Any) -> dict[str, Any]:
    fields = {"tools": [WEATHER], **fields}
    return await served.chat(history, **fields)


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("spaced", [True, False])
async def test_the_next_prompt_begins_with_all_that_was_computed(
    serve: Serve, *, drop: bool, spaced: bool
) -> None:
    served = await serve(CALL)
    first = await second(served, ASKED)
    next_answer = await second(served, answered(first, drop=drop, spaced=spaced))
    before, after = served.upstream.asked
    computed = len(before.ids) + first["usage"]["completion_tokens"]
    assert next_answer["usage"]["prompt_tokens_details"]["cached_tokens"] == computed
    assert list(after.ids[: len(before.ids)]) == list(before.ids)
    extension = next_answer["choices"][0]["baleen"]
    assert "cache_break_reason" not in extension
    assert extension.get("reasoning_restored", 0) == (1 if drop else 0)


async def test_restored_reasoning_is_announced_in_a_header(serve: Serve) -> None:
    served = await serve(CALL)
    first = await second(served, ASKED)
    body = {"messages": answered(first), "tools": [WEATHER]}
    response = await served.post("/v1/chat/completions", body)
    assert response.headers["x-baleen-reasoning-restored"] == "1"
    prompt = served.gateway.vocabulary.segments_of(served.upstream.asked[-1].ids)
    assert ("Two lookups.", False) in prompt


async def test_turns_survive_a_restart_and_are_shared(serve: Serve, tmp_path: Path) -> None:
    one = await serve(CALL, state_dir=tmp_path)
    other = await serve(CALL, state_dir=tmp_path)
    first = await second(one, ASKED)
    await second(other, answered(first, spaced=True))
    sampled = first["usage"]["completion_tokens"]
    known = [*one.upstream.asked[0].ids, *_ids_of(one, CALL)]
    assert len(known) == len(one.upstream.asked[0].ids) + sampled
    assert list(other.upstream.asked[0].ids[: len(known)]) == known


def _ids_of(served: Served, text: str) -> list[int]:
    from baleen.server.upstreams.scripted import segments_of

    ids = served.upstream._encoder.encode(segments_of(text))
    return [*ids, served.gateway.vocabulary.eos]


async def test_keys_do_not_see_each_other_s_turns(serve: Serve) -> None:
    served = await serve(CALL, api_keys=("a", "b"))
    body = {"messages": ASKED, "tools": [WEATHER]}
    path = "/v1/chat/completions"
    first = (await served.post(path, body, authorization="Bearer a")).json()
    again = {"messages": answered(first), "tools": [WEATHER]}
    other = await served.post(path, again, authorization="Bearer b")
    assert "x-baleen-reasoning-restored" not in other.headers
    same = await served.post(path, again, authorization="Bearer a")
    assert same.headers["x-baleen-reasoning-restored"] == "1"


async def test_missing_reasoning_is_refused_only_by_flag(serve: Serve) -> None:
    served = await serve(CALL)
    history = answered(await second(served, ASKED))
    strict = await serve(CALL, rejects_missing_reasoning=True)
    body = {"messages": history, "tools": [WEATHER]}
    response = await strict.post("/v1/chat/completions", body)
    assert response.json()["error"]["message"] == (
        "The `reasoning_content` in the thinking mode must be passed back to the API."
    )
    lenient = await serve(CALL)
    assert (await second(lenient, history))["choices"]
    metrics = (await lenient.http.get("/metrics")).text
    assert 'baleen:reasoning_missing_total{model_name="deepseek-v4"} 1' in metrics


SYSTEM = [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda h, f: f.update(reasoning_effort="max"), "effort", None),
        (lambda h, f: f.pop("tools"), "dropped_reasoning", None),
        (lambda h, f: f.update(tools=[WEATHER, NOW]), "tools", None),
        (lambda h, f: h[0].update(content="Be long."), "system", None),
        (lambda h, f: h[1].update(content="Weather in Bonn?"), "edited_message", 1),
        (lambda h, f: h[2].update(content="Something else."), "edited_message", 2),
    ],
)
async def test_what_breaks_a_prefix_is_named(
    serve: Serve, change: Any, kind: str, message: int | None
) -> None:
    served = await serve(CALL)
    first = await second(served, [*SYSTEM, *ASKED])
    history = json.loads(json.dumps([*SYSTEM, *answered(first, drop=False)]))
    fields: dict[str, Any] = {"tools": [WEATHER]}
    change(history, fields)
    response = await served.post("/v1/chat/completions", {"messages": history, **fields})
    found = response.json()["choices"][0]["baleen"]["cache_break_reason"]
    assert found == {"kind": kind, "message": message}
    assert response.headers["x-baleen-cache-break"].startswith(kind)
    assert f'reason="{kind}"' in (await served.http.get("/metrics")).text


NOTHING = {"type": "object", "properties": {}}
NOW = {"type": "function", "function": {"name": "now", "description": "", "parameters": NOTHING}}


async def test_a_conversation_of_hundreds_of_turns_is_prefilled_once(
    serve: Serve, tokenizer: Any
) -> None:
    """A client that drops reasoning, respaces arguments and reorders results, 60 turns long."""
    served = await serve(CALL)
    history: list[Any] = [*ASKED]
    for turn in range(60):
        body = await second(served, history)
        history = [*history, *answered(body, spaced=True)[1:]]
        prefilled = served.upstream.prefilled[-1]
        results = len(tokenizer.encode("<tool_result>sun</tool_result>").ids)
        assert turn == 0 or prefilled < 2 * results + 20
    gateway = served.gateway
    reused = gateway.telemetry.reused.plain
    reusable = gateway.telemetry.reusable.plain
    assert reused == reusable > 0
    assert len(gateway.conversations) <= 3
