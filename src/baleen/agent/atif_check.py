"""Checks a document against the rules of ATIF 1.0 to 1.8 and names every breach with its place.

Source: Agent Trajectory Interchange Format as Harbor's models enforce it: unknown keys are
forbidden, `extra` is free, steps count from 1, agent-only fields stand only on agent steps,
observations refer to calls of their own step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple


class _Field(NamedTuple):
    kind: str
    required: bool = False


_TEXT = _Field("text")
_NUMBER = _Field("number")
_COUNT = _Field("count")
_EXTRA = _Field("object")

_SHAPES: Mapping[str, Mapping[str, _Field]] = {
    "trajectory": {
        "schema_version": _Field("version", required=True),
        "session_id": _TEXT,
        "trajectory_id": _TEXT,
        "agent": _Field("agent", required=True),
        "steps": _Field("[step]", required=True),
        "notes": _TEXT,
        "final_metrics": _Field("final_metrics"),
        "continued_trajectory_ref": _TEXT,
        "subagent_trajectories": _Field("[trajectory]"),
        "extra": _EXTRA,
    },
    "agent": {
        "name": _Field("text", required=True),
        "version": _Field("text", required=True),
        "model_name": _TEXT,
        "tool_definitions": _Field("[object]"),
        "extra": _EXTRA,
    },
    "step": {
        "step_id": _Field("count", required=True),
        "timestamp": _Field("time"),
        "source": _Field("source", required=True),
        "message": _Field("content", required=True),
        "model_name": _TEXT,
        "reasoning_effort": _Field("effort"),
        "reasoning_content": _TEXT,
        "tool_calls": _Field("[tool_call]"),
        "observation": _Field("observation"),
        "metrics": _Field("metrics"),
        "is_copied_context": _Field("flag"),
        "llm_call_count": _COUNT,
        "extra": _EXTRA,
    },
    "tool_call": {
        "tool_call_id": _Field("text", required=True),
        "function_name": _Field("text", required=True),
        "arguments": _Field("object", required=True),
        "extra": _EXTRA,
    },
    "observation": {"results": _Field("[result]", required=True)},
    "result": {
        "source_call_id": _TEXT,
        "content": _Field("content"),
        "subagent_trajectory_ref": _Field("[object]"),
        "extra": _EXTRA,
    },
    "metrics": {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "cached_tokens": _COUNT,
        "cost_usd": _NUMBER,
        "prompt_token_ids": _Field("[count]"),
        "completion_token_ids": _Field("[count]"),
        "logprobs": _Field("[number]"),
        "extra": _EXTRA,
    },
    "final_metrics": {
        "total_prompt_tokens": _COUNT,
        "total_completion_tokens": _COUNT,
        "total_cached_tokens": _COUNT,
        "total_cost_usd": _NUMBER,
        "total_steps": _COUNT,
        "extra": _EXTRA,
    },
}
_AGENT_ONLY = ("model_name", "reasoning_effort", "reasoning_content", "tool_calls", "metrics")
_VERSIONS = frozenset(f"ATIF-v1.{minor}" for minor in range(9))


def problems(document: Any) -> list[str]:
    """Everything that is wrong with a document; an empty list means that it is valid."""
    return list(_check(document, "trajectory", "$"))


def _check(value: Any, kind: str, path: str) -> Iterator[str]:
    if kind.startswith("["):
        if not isinstance(value, list):
            yield f"{path}: not a list"
            return
        for index, item in enumerate(value):
            yield from _check(item, kind[1:-1], f"{path}[{index}]")
    elif kind in _SHAPES:
        if not isinstance(value, Mapping):
            yield f"{path}: not an object"
            return
        yield from _check_object(value, kind, path)
    elif not _is_plain(value, kind):
        yield f"{path}: {value!r:.60} is not a valid {kind}"


def _check_object(value: Mapping[str, Any], kind: str, path: str) -> Iterator[str]:
    shape = _SHAPES[kind]
    yield from (f"{path}.{name}: unknown key" for name in value.keys() - shape.keys())
    for name, field in shape.items():
        if value.get(name) is not None:
            yield from _check(value[name], field.kind, f"{path}.{name}")
        elif field.required:
            yield f"{path}.{name}: missing"
    if kind == "step":
        yield from _check_step(value, path)
    if kind == "trajectory":
        yield from _check_trajectory(value, path)


def _check_step(step: Mapping[str, Any], path: str) -> Iterator[str]:
    if step.get("source") != "agent":
        for name in _AGENT_ONLY:
            if step.get(name) is not None:
                yield f"{path}.{name}: only agent steps may have it"
    elif step.get("llm_call_count") == 0:
        for name in ("metrics", "reasoning_content"):
            if step.get(name) is not None:
                yield f"{path}.{name}: forbidden where llm_call_count is 0"
    known = {call.get("tool_call_id") for call in _objects(step.get("tool_calls"))}
    observation = step.get("observation")
    results = observation.get("results") if isinstance(observation, Mapping) else None
    for index, result in enumerate(_objects(results)):
        source = result.get("source_call_id")
        if source is not None and source not in known:
            yield f"{path}.observation.results[{index}]: no call {source!r} in this step"


def _check_trajectory(document: Mapping[str, Any], path: str) -> Iterator[str]:
    steps = _objects(document.get("steps"))
    if not steps:
        yield f"{path}.steps: at least one is needed"
    for expected, step in enumerate(steps, 1):
        if step.get("step_id") != expected:
            yield f"{path}.steps[{expected - 1}].step_id: not {expected}"
    children = [t.get("trajectory_id") for t in _objects(document.get("subagent_trajectories"))]
    if None in children or len(set(children)) != len(children):
        yield f"{path}.subagent_trajectories: each needs a trajectory_id of its own"


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _is_plain(value: Any, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "text":
            return isinstance(value, str)
        case "number":
            return number
        case "count":
            return number and isinstance(value, int) and value >= 0
        case "flag":
            return isinstance(value, bool)
        case "object":
            return isinstance(value, Mapping)
        case "source":
            return value in ("system", "user", "agent")
        case "version":
            return value in _VERSIONS
        case "effort":
            return isinstance(value, str) or number
        case "content":
            return isinstance(value, str) or _is_parts(value)
        case "time":
            return _is_time(value)
    raise AssertionError(f"the tables name a kind {kind!r} that is not defined")


def _is_parts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, Mapping) and part.get("type") in ("text", "image") for part in value
    )


def _is_time(value: Any) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True
