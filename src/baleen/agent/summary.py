"""What came of a run, in one object: the data of `baleen run --json` and of summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from baleen.agent.base import ToolCall
from baleen.agent.decide import canonical_arguments
from baleen.agent.history import CallState, History
from baleen.agent.run_folder import RunFolder


def summary(
    history: History, folder: RunFolder, *, model_name: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Outcome, answer, calls and counters of a run as far as it has come."""
    turns = [turn.reading for turn in history.finished_turns if turn.reading]
    end = history.end
    return {
        "answer": history.answer,
        "outcome": end.outcome.value if end else None,
        "cause": end.cause if end else "unfinished",
        "message": end.message if end else "the run has not ended",
        "run_dir": str(folder.path),
        "model": model_name,
        "calls": [_call(state) for state in history.calls],
        "usage": {
            "turns": len(turns),
            "prompt_tokens": sum(turn.usage.prompt_tokens for turn in turns),
            "completion_tokens": sum(turn.usage.completion_tokens for turn in turns),
            "cached_tokens": sum(turn.usage.cached_tokens for turn in turns),
            "reasoning_chars": sum(len(turn.reasoning) for turn in turns),
            "sampling_s": round(sum(turn.duration_s for turn in turns), 3),
        },
        "resumed": len(history.resumed),
        "sandboxes": [{"box_id": box.box_id, "create_s": box.create_s} for box in history.boxes],
        "endpoint": dict(facts),
    }


def command_line(call: ToolCall) -> str:
    """What a call does, in a line for people: the command itself where there is one."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return f"{call.name} {call.arguments}"
    if isinstance(arguments, dict) and set(arguments) == {"command"}:
        return str(arguments["command"])
    return f"{call.name} {canonical_arguments(call)}"


def _call(state: CallState) -> dict[str, Any]:
    result = state.result
    return {
        "command": command_line(state.call),
        "exit_code": result.exit_code if result else None,
        "output": result.text if result else None,
        "tool": state.call.name,
        "source": result.source if result else None,
        "replayed": result.replayed if result else False,
        "duration_s": round(result.duration_s, 6) if result else None,
    }
