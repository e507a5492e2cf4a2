"""A run as an ATIF document: the trajectory format that viewers and other harnesses read.

Source: Agent Trajectory Interchange Format, version 1.8. Only fields of that format are written;
what is ours goes into `extra`. Token ids stand in the sidecar (see `sidecar`), not here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import baleen
from baleen.agent.history import CallState, History, TurnState

SCHEMA_VERSION = "ATIF-v1.8"


def trajectory(
    history: History, *, model_name: str, tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The document for a run as far as it has come."""
    assert history.start is not None, "a journal begins with its start record"
    steps = [
        _step(1, history.start.at, "system", history.start.system),
        _step(2, history.start.at, "user", history.start.question),
    ]
    for number, turn in enumerate(history.finished_turns):
        steps.append(_agent_step(number + 3, turn, model_name))
    return {
        "schema_version": SCHEMA_VERSION,
        "session_id": history.run_id,
        "trajectory_id": history.run_id,
        "agent": {
            "name": "baleen",
            "version": baleen.__version__,
            "model_name": model_name,
            "tool_definitions": list(tools),
        },
        "steps": steps,
        "final_metrics": _final_metrics(history, len(steps)),
        "extra": _extra(history),
    }


def _step(number: int, at: str, source: str, message: str) -> dict[str, Any]:
    return {"step_id": number, "timestamp": at, "source": source, "message": message}


def _agent_step(number: int, turn: TurnState, model_name: str) -> dict[str, Any]:
    reading = turn.reading
    assert reading is not None, "only finished turns become steps"
    step = _step(number, turn.at, "agent", reading.content)
    step["model_name"] = model_name
    if reading.reasoning:
        step["reasoning_content"] = reading.reasoning
    if turn.calls:
        step["tool_calls"] = [_tool_call(state) for state in turn.calls]
        if results := [_result(state) for state in turn.calls if state.result]:
            step["observation"] = {"results": results}
    step["metrics"] = {
        "prompt_tokens": reading.usage.prompt_tokens,
        "completion_tokens": reading.usage.completion_tokens,
        "cached_tokens": reading.usage.cached_tokens,
    }
    step["llm_call_count"] = 1
    step["extra"] = {
        "finish_reason": reading.finish_reason,
        "duration_s": round(reading.duration_s, 6),
        "first_token_s": round(reading.first_token_s, 6),
        "continued_after_resume": turn.after_resume,
    }
    return step


def _tool_call(state: CallState) -> dict[str, Any]:
    call = state.call
    extra: dict[str, Any] = {"status": call.status}
    if state.dispatched is not None:
        extra["key"] = state.dispatched.key
        extra["box_id"] = state.dispatched.box_id
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        arguments, extra["raw_arguments"] = {}, call.arguments
    return {
        "tool_call_id": call.id,
        "function_name": call.name,
        "arguments": arguments,
        "extra": extra,
    }


def _result(state: CallState) -> dict[str, Any]:
    result = state.result
    assert result is not None, "the caller has filtered"
    return {
        "source_call_id": state.call.id,
        "content": result.text,
        "extra": {
            "source": result.source,
            "exit_code": result.exit_code,
            "duration_s": round(result.duration_s, 6),
            "replayed": result.replayed,
            "timestamp": result.at,
        },
    }


def _final_metrics(history: History, num_steps: int) -> dict[str, Any]:
    usages = [turn.reading.usage for turn in history.finished_turns if turn.reading]
    return {
        "total_prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "total_completion_tokens": sum(usage.completion_tokens for usage in usages),
        "total_cached_tokens": sum(usage.cached_tokens for usage in usages),
        "total_steps": num_steps,
    }


def _extra(history: History) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "boxes": [{"box_id": box.box_id, "log": box.log, "at": box.at} for box in history.boxes],
        "resumed_at": [record.at for record in history.resumed],
    }
    if history.policy is not None:
        extra["policy"] = history.policy
    if history.end is not None:
        extra["outcome"] = history.end.outcome.value
        extra["cause"] = history.end.cause
        extra["detail"] = history.end.message
    return extra
