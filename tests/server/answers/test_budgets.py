"""Budgets, loops, stalls and their recovery."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.server.answers.loops import LoopDetector
from baleen.server.answers.stop_strings import StopStrings
from baleen.server.answers.thinking_budget import ThinkingBudget
from baleen.server.upstreams.scripted import Line

from ..conftest import ASKED, CALL, WEATHER, Serve, Served

LONG = "One thing and another, " * 40


def closing(served: Served, rest: str) -> Any:
    """Thinks without end until the reasoning is closed from outside."""
    close = served.gateway.vocabulary.think_close

    def say(asked: Any) -> str:
        return rest if asked.ids[-1] == close else LONG

    return say


async def test_a_spent_thinking_budget_closes_the_reasoning(serve: Serve) -> None:
    served = await serve("")
    served.upstream.script = closing(served, "The answer.")
    body = await served.chat(thinking_token_budget=50)
    choice = body["choices"][0]
    assert choice["message"]["content"] == "The answer."
    assert choice["baleen"]["reasoning_closed_by"] == "budget"
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 50
    first, again = served.upstream.asked
    assert list(again.ids[: len(first.ids)]) == list(first.ids)
    assert len(again.ids) == len(first.ids) + 51
    assert served.upstream.num_running == 0


async def test_the_injected_token_is_part_of_the_turn_that_is_replayed(serve: Serve) -> None:
    served = await serve("")
    served.upstream.script = closing(served, CALL.partition("</think>")[2])
    body = await served.chat(tools=[WEATHER], thinking_token_budget=30)
    message = body["choices"][0]["message"]
    message.pop("reasoning_content")
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "sun"}
        for call in message["tool_calls"]
    ]
    again = await served.chat([*ASKED, message, *results], tools=[WEATHER])
    assert "cache_break_reason" not in again["choices"][0]["baleen"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == (
        body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    )


async def test_messages_budget_tokens_are_honoured(serve: Serve) -> None:
    served = await serve("")
    served.upstream.script = closing(served, "Done.")
    body = {
        "model": "m",
        "max_tokens": 2000,
        "messages": ASKED,
        "thinking": {"type": "enabled", "budget_tokens": 40},
    }
    found = (await served.post("/v1/messages", body)).json()
    assert found["content"][-1] == {"type": "text", "text": "Done."}
    assert found["baleen"]["reasoning_closed_by"] == "budget"


def test_a_budget_closes_at_a_sentence_end_before_it_closes_anywhere() -> None:
    budget = ThinkingBudget(160)
    assert not budget.is_spent(139, b".")
    assert budget.is_spent(140, b" done.")
    assert not budget.is_spent(159, b" and")
    assert budget.is_spent(160, b" and")


async def test_reasoning_that_goes_round_in_circles_is_closed_and_labelled(serve: Serve) -> None:
    served = await serve("")
    close = served.gateway.vocabulary.think_close

    def say(asked: Any) -> str:
        return "Out." if asked.ids[-1] == close else "wait, no, " * 2000

    served.upstream.script = say
    body = await served.chat()
    choice = body["choices"][0]
    assert choice["baleen"]["stall_kind"] == "reasoning_loop"
    assert choice["baleen"]["reasoning_closed_by"] == "loop"
    assert choice["message"]["content"] == "Out."
    assert body["usage"]["completion_tokens"] < 800


async def test_a_circle_is_closed_though_the_upstream_was_silent_before(serve: Serve) -> None:
    lines = iter([Line("Well, ", stalls_after=1), Line("wait, no, " * 2000), Line("Out.")])
    served = await serve(lambda _: next(lines), upstream_options={"stall_timeout_s": 0.1})
    choice = (await served.chat())["choices"][0]
    assert choice["baleen"]["stall_kind"] == "no_bytes"
    assert choice["baleen"]["reasoning_closed_by"] == "loop"
    assert choice["message"]["content"] == "Out."


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(0, 300))
def test_every_short_cycle_is_found_whatever_came_before(cycle: list[int], before: int) -> None:
    detector = LoopDetector()
    for number in range(before):
        assert not detector.feed(1_000 + number)
    found = [detector.feed(number) for number in cycle * (2_000 // len(cycle) + 1)]
    assert any(found)


def test_lists_and_tables_are_no_loops() -> None:
    detector = LoopDetector()
    rows = [[1, 2, 3, row // 10, row % 10 + 20, 4, 5, 6, 7, 8] for row in range(2_000)]
    assert not any(detector.feed(number) for row in rows for number in row)


def stalling(first: str, then: str) -> Any:
    """Stalls once; the request after that goes on."""
    state = {"asked": 0}

    def say(asked: Any) -> str:
        state["asked"] += 1
        return first if state["asked"] == 1 else then

    return say


STALLS = [
    ("Hm.</think>", "Yes.", "empty_after_reasoning", "Yes."),
    ("Hm.", "Yes.", "empty_after_reasoning", "Yes."),
    ("", "</think>Yes.", "empty", "Yes."),
]


@pytest.mark.parametrize(("first", "then", "kind", "content"), STALLS)
async def test_an_empty_turn_is_decoded_once_more(
    serve: Serve, first: str, then: str, kind: str, content: str
) -> None:
    served = await serve(stalling(first, then))
    choice = (await served.chat())["choices"][0]
    assert choice["message"]["content"].endswith(content)
    assert choice["baleen"]["stall_kind"] == kind
    assert choice["baleen"]["recovered"] is True
    assert served.upstream.asked[1].min_tokens == 1
    assert len(served.upstream.asked) == 2


@pytest.mark.parametrize(("first", "then", "kind", "content"), STALLS)
async def test_recovery_can_be_switched_off_and_the_label_stays(
    serve: Serve, first: str, then: str, kind: str, content: str
) -> None:
    served = await serve(stalling(first, then), recovers=False)
    choice = (await served.chat())["choices"][0]
    assert choice["message"]["content"] == ""
    assert choice["baleen"]["stall_kind"] == kind
    assert len(served.upstream.asked) == 1


async def test_recovery_is_never_tried_twice(serve: Serve) -> None:
    served = await serve(stalling("Hm.</think>", "\n"))
    choice = (await served.chat())["choices"][0]
    assert len(served.upstream.asked) == 2
    assert choice["baleen"]["stall_kind"] == "empty_after_reasoning"
    assert choice["baleen"]["recovered"] is True


async def test_an_announced_call_is_begun_for_the_model(serve: Serve) -> None:
    rest = CALL.partition("tool_calls>\n")[2]
    served = await serve(stalling("Look.</think>I will look it up:", rest))
    choice = (await served.chat(tools=[WEATHER]))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert len(choice["message"]["tool_calls"]) == 2
    assert choice["message"]["content"] == "I will look it up:"
    assert choice["baleen"]["stall_kind"] == "announced_no_action"
    assert served.upstream.asked[1].constraint.in_block, "the rest is held to the schemas too"


async def test_reasoning_that_breaks_off_goes_on_under_the_same_constraint(serve: Serve) -> None:
    lines = iter([Line("One. Two. Three.", breaks_after=4), Line("</think>Yes.")])
    served = await serve(lambda _: next(lines))
    await served.chat(tools=[WEATHER])
    first, again = served.upstream.asked
    assert again.constraint == first.constraint
    assert again.constraint.thinking


async def test_nothing_after_a_tool_result_is_labelled(serve: Serve) -> None:
    served = await serve(stalling(CALL, ""), recovers=False)
    first = await served.chat(tools=[WEATHER])
    message = first["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "sun"}
        for call in message["tool_calls"]
    ]
    body = await served.chat([*ASKED, message, *results], tools=[WEATHER])
    assert body["choices"][0]["baleen"]["stall_kind"] == "empty_after_tool_result"


async def test_a_call_written_as_prose_is_labelled(serve: Serve) -> None:
    said = 'a</think><tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
    served = await serve(said)
    choice = (await served.chat(tools=[WEATHER]))["choices"][0]
    assert choice["baleen"]["stall_kind"] == "call_as_prose"
    assert "stall_total" in (await served.http.get("/metrics")).text


@given(st.text("abST", max_size=40), st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_stop_strings_cut_the_same_however_the_text_comes(text: str, sizes: list[int]) -> None:
    whole = StopStrings(["ST", "aab"]).before(text)
    stops, said, place, turn = StopStrings(["ST", "aab"]), "", 0, 0
    while place < len(text):
        size = sizes[turn % len(sizes)]
        said += stops.take(text[place : place + size]) if stops.found is None else ""
        place, turn = place + size, turn + 1
    assert said + stops.take_rest() == whole


async def test_an_answer_that_is_not_streamed_is_kept_alive_too(serve: Serve) -> None:
    served = await serve(lambda _: Line("a b c d e f g h", delay_s=0.05), keep_alive_s=0.1)
    for path, body in (
        ("/v1/chat/completions", {"messages": ASKED}),
        ("/v1/messages", {"messages": ASKED, "max_tokens": 50}),
        ("/v1/responses", {"input": "Hello"}),
    ):
        response = await served.post(path, body)
        assert response.status_code == 200
        assert response.text.startswith("\n")
        assert response.headers["content-type"].startswith("application/json")
        assert response.headers["x-baleen-prompt-tokens"]
        assert response.json()["usage"]


async def test_a_quick_answer_comes_without_line_ends_before_it(serve: Serve) -> None:
    served = await serve("Thought.</think>Hello.")
    response = await served.post("/v1/chat/completions", {"messages": ASKED})
    assert response.text.startswith("{")
    assert int(response.headers["content-length"]) == len(response.content)


async def test_an_error_behind_the_first_line_end_is_the_object(serve: Serve) -> None:
    def script(_: object) -> Line:
        return Line("a b c d e f g h", delay_s=0.05, breaks_after=6)

    served = await serve(script, keep_alive_s=0.1, upstream_retries=0)
    for path, kind in (("/v1/chat/completions", None), ("/v1/messages", "error")):
        response = await served.post(path, {"messages": ASKED, "max_tokens": 50})
        assert response.status_code == 200
        assert response.text.startswith("\n")
        found = response.json()
        assert found.get("type") == kind
        assert "broke off" in found["error"]["message"]
