"""What a kill has cost, counted from what lies in the run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from baleen.agent.history import History
from baleen.agent.journal import read_history
from baleen.agent.run_folder import RunFolder


def scoreboard(
    folder: RunFolder, summary: Mapping[str, Any], at_kill: History
) -> dict[str, int | float]:
    """The figures of a run that was killed once; `at_kill` is its record at that moment."""
    whole = read_history(folder.wal)
    runs = executions(folder, whole)
    kept = _num_common(at_kill.context_ids, whole.context_ids)
    endpoint = summary["endpoint"]
    durations = [call["duration_s"] for call in summary["calls"] if call["source"] == "box"]
    return {
        "commands": len(runs),
        "commands_run_again": sum(runs.values()) - len(runs),
        "sampled_tokens_at_kill": at_kill.num_sampled_tokens,
        "sampled_tokens_lost": len(at_kill.context_ids) - kept,
        "reasoning_chars_kept": sum(len(t.reading.reasoning) for t in whole.turns if t.reading),
        "prefilled_tokens": endpoint["prefilled_tokens"],
        "naive_prefilled_tokens": endpoint["prefilled_tokens"] + endpoint["restored_tokens"],
        "cache_bytes": endpoint["cache_bytes"],
        "gqa8_cache_bytes": endpoint["gqa8_cache_bytes"],
        "sandbox_create_ms": round(1000 * whole.boxes[0].create_s, 2),
        "command_ms": round(1000 * median(durations), 2) if durations else 0.0,
    }


def executions(folder: RunFolder, history: History) -> Counter[str]:
    """How often each command was started, by key, in all sandboxes of the run."""
    from baleen.sandbox.trajectory import Kind, read

    return Counter(
        record.key
        for box in history.boxes
        for record in read(folder.path / box.log)
        if record.kind is Kind.INTENT and record.key is not None
    )


def table(scores: Mapping[str, int | float]) -> Iterator[str]:
    """The figures for people."""
    ratio = scores["cache_bytes"] / max(1, scores["gqa8_cache_bytes"])
    rows = [
        ("commands run again", f"{scores['commands_run_again']} of {scores['commands']}"),
        (
            "sampled tokens lost",
            f"{scores['sampled_tokens_lost']} of {scores['sampled_tokens_at_kill']}, "
            f"reasoning kept: {scores['reasoning_chars_kept']} characters",
        ),
        (
            "prefilled after the kill",
            f"{scores['prefilled_tokens']} tokens, a naive restart: "
            f"{scores['naive_prefilled_tokens']}",
        ),
        (
            "cache",
            f"{scores['cache_bytes']:,} bytes, as GQA-8: {scores['gqa8_cache_bytes']:,} "
            f"({ratio:.1%})",
        ),
        (
            "sandbox",
            f"{scores['sandbox_create_ms']} ms to create, {scores['command_ms']} ms a command",
        ),
    ]
    return (f"{name:26}{value}" for name, value in rows)


def _num_common(left: list[int], right: list[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
