"""The files of a run folder that follow from its log, written for others to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baleen.agent.atif import trajectory
from baleen.agent.config import RunConfig
from baleen.agent.history import History
from baleen.agent.nano import ABILITIES, is_within_reach
from baleen.agent.outcome import Outcome
from baleen.agent.prompt import NANO, Prompt
from baleen.agent.run_folder import RunFolder, write_json
from baleen.agent.sidecar import segments
from baleen.agent.summary import summary


def export(
    history: History,
    folder: RunFolder,
    config: RunConfig,
    prompt: Prompt,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write trajectory, token sidecar and summary; returns the summary."""
    export_trajectory(history, folder, config, prompt)
    write_json(folder.tokens, segments(history), indent=None)
    found = summary(history, folder, model_name=config.model_name or config.model, facts=facts)
    if prompt is NANO and not answers_within_reach(history):
        found["hint"] = ABILITIES
    write_json(folder.summary, found)
    return found


def export_trajectory(
    history: History, folder: RunFolder, config: RunConfig, prompt: Prompt
) -> None:
    """Write the trajectory as far as it has come."""
    document = trajectory(
        history,
        model_name=config.model_name or config.model,
        tools=prompt.tools,
    )
    write_json(folder.trajectory, document)


def answers_within_reach(history: History) -> bool:
    """Whether the small checkpoint answered, and was asked something that it was trained for."""
    has_answered = history.end is not None and history.end.outcome is Outcome.STOP
    return has_answered and is_within_reach(history.question)
