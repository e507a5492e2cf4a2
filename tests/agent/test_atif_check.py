"""The validator accepts the format and names every breach of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from baleen.agent.atif_check import problems

VALID: dict[str, Any] = {
    "schema_version": "ATIF-v1.8",
    "session_id": "s",
    "agent": {"name": "a", "version": "1", "tool_definitions": [{}], "extra": {"own": 1}},
    "steps": [
        {"step_id": 1, "source": "user", "message": "q", "timestamp": "2026-01-31T12:00:00Z"},
        {
            "step_id": 2,
            "source": "agent",
            "message": [{"type": "text", "text": "hm"}],
            "reasoning_effort": 75,
            "reasoning_content": "r",
            "tool_calls": [{"tool_call_id": "c", "function_name": "f", "arguments": {"x": 1}}],
            "observation": {"results": [{"source_call_id": "c", "content": "out"}]},
            "metrics": {"prompt_tokens": 1, "logprobs": [-0.5], "cost_usd": 0.1},
            "llm_call_count": 1,
        },
    ],
    "final_metrics": {"total_steps": 2},
}


def test_a_valid_document_has_no_problems() -> None:
    assert problems(VALID) == []


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("schema_version", "ATIF-v2.0", "not a valid version"),
        ("schema_version", None, "missing"),
        ("own", 1, "$.own: unknown key"),
        ("steps", [], "at least one"),
        ("steps.0.step_id", 2, "$.steps[0].step_id: not 1"),
        ("steps.0.metrics", {}, "only agent steps"),
        ("steps.0.timestamp", "noon", "not a valid time"),
        ("steps.0.source", "tool", "not a valid source"),
        ("steps.1.tool_calls.0.arguments", "{}", "not a valid object"),
        ("steps.1.tool_calls.0.own", 1, "unknown key"),
        ("steps.1.observation.results.0.source_call_id", "d", "no call 'd' in this step"),
        ("steps.1.llm_call_count", 0, "forbidden where llm_call_count is 0"),
        ("steps.1.metrics.prompt_tokens", -1, "not a valid count"),
        ("steps.1.metrics.prompt_tokens", True, "not a valid count"),
        ("steps.1.message", None, "$.steps[1].message: missing"),
        ("final_metrics.total_tokens", 3, "unknown key"),
        ("subagent_trajectories", [VALID], "trajectory_id of its own"),
    ],
)
def test_each_breach_is_named(place: str, value: Any, expected: str) -> None:
    document = copy.deepcopy(VALID)
    *path, last = place.split(".")
    target: Any = document
    for part in path:
        target = target[int(part) if part.isdigit() else part]
    target[last] = value
    assert any(expected in problem for problem in problems(document)), problems(document)


def test_something_else_entirely_is_one_problem() -> None:
    assert problems([]) == ["$: not an object"]
