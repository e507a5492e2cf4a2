"""A run from its configuration to its summary, and the same from where a dead process left it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from baleen.agent import records
from baleen.agent.base import Endpoint, Watch
from baleen.agent.config import RunConfig
from baleen.agent.endpoints import open_endpoint, prompt_for, toolbox_for
from baleen.agent.export import export, export_trajectory
from baleen.agent.journal import Journal
from baleen.agent.loop import Agent
from baleen.agent.outcome import Outcome
from baleen.agent.prompt import Prompt
from baleen.agent.run_folder import RunFolder, read_json, write_json
from baleen.agent.sparing import Sparing
from baleen.agent.versions import versions
from baleen.agent.workplace import Workplace

OpenEndpoint = Callable[[RunConfig, Prompt], Awaitable[Endpoint]]


async def start(
    config: RunConfig,
    runs: Path,
    watch: Watch,
    *,
    run_dir: Path | None = None,
    open_endpoint: OpenEndpoint = open_endpoint,
) -> dict[str, Any]:
    """Answer a question in a new folder under `runs`, or in `run_dir`; returns the summary.

    Raises:
        BaleenError: the model cannot be had; then no folder is left.
    """
    prompt = prompt_for(config)
    files = {"config.json": config.to_json(), "versions.json": versions()}
    if run_dir is not None:
        folder = RunFolder.create(run_dir, files)
    else:
        folder = RunFolder.create_under(runs, config.question, files)
    watch.note(f"run folder {folder.path}")
    try:
        endpoint = await open_endpoint(config, prompt)
    except BaseException:
        folder.discard()
        raise
    config = replace(config, model_name=endpoint.name)
    write_json(folder.config, config.to_json())
    journal = Journal.create(folder.wal, _start_record(config, prompt, folder))
    return await _drive(config, prompt, folder, journal, endpoint, watch)


async def resume(
    folder: RunFolder, watch: Watch, *, open_endpoint: OpenEndpoint = open_endpoint
) -> dict[str, Any]:
    """Finish a run that was killed or that failed; a run that has ended is only reported.

    Raises:
        RunError: the folder is damaged, or another process works on it.
        BaleenError: the model cannot be had.
    """
    config = RunConfig.from_json(read_json(folder.config))
    prompt = prompt_for(config)
    journal = _reopen(config, prompt, folder)
    try:
        end = journal.history.end
        if end is not None and end.outcome is not Outcome.INFRA_ERROR:
            return await _reported(config, prompt, folder, journal, watch)
        endpoint = await open_endpoint(config, prompt)
    except BaseException:
        journal.close()
        raise
    journal.write(records.Resumed(records.now()), durable=True)
    watch.note(f"resuming {folder.path}: {_progress(journal)}")
    return await _drive(config, prompt, folder, journal, endpoint, watch)


async def _drive(
    config: RunConfig,
    prompt: Prompt,
    folder: RunFolder,
    journal: Journal,
    endpoint: Endpoint,
    watch: Watch,
) -> dict[str, Any]:
    workplace = Workplace(config, folder, journal, watch)
    agent = Agent(
        endpoint,
        toolbox_for(prompt),
        workplace,
        journal,
        config.limits,
        observation_limit_chars=prompt.observation_limit_chars,
        watch=watch,
        on_step=Sparing(lambda: export_trajectory(journal.history, folder, config, prompt)),
    )
    try:
        await agent.run()
        await workplace.close()  # before the summary: where there is one, no box is left
        return export(journal.history, folder, config, prompt, endpoint.facts())
    finally:
        await _release(workplace, endpoint, journal)


async def _release(workplace: Workplace, endpoint: Endpoint, journal: Journal) -> None:
    """Give everything back, also while the task is being cancelled."""
    try:
        await asyncio.shield(workplace.close())
    finally:
        await endpoint.close()
        journal.close()


def _reopen(config: RunConfig, prompt: Prompt, folder: RunFolder) -> Journal:
    start_record = _start_record(config, prompt, folder)
    if not folder.wal.exists():  # killed between config.json and the log
        return Journal.create(folder.wal, start_record)
    journal = Journal.open(folder.wal)
    if journal.history.start is None:  # killed while writing the first record
        journal.write(start_record, durable=True)
    return journal


def _start_record(config: RunConfig, prompt: Prompt, folder: RunFolder) -> records.Start:
    run_id = f"{folder.name}-{secrets.token_hex(4)}"  # the same second in two folders is no clash
    return records.Start(run_id, prompt.system, config.question, records.now())


async def _reported(
    config: RunConfig, prompt: Prompt, folder: RunFolder, journal: Journal, watch: Watch
) -> dict[str, Any]:
    try:
        if not folder.summary.exists():  # killed between the last record and the summary
            await Workplace(config, folder, journal, watch).clear()
            return export(journal.history, folder, config, prompt, {})
        found: dict[str, Any] = read_json(folder.summary)
        return found
    finally:
        journal.close()


def _progress(journal: Journal) -> str:
    history = journal.history
    done = sum(state.result is not None for state in history.calls)
    return (
        f"{len(history.finished_turns)} turns, {history.num_sampled_tokens} sampled tokens and "
        f"{done} command results are on record"
    )
