"""`baleen view`: a run, or any ATIF file, as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from baleen.cli.live import printable
from baleen.errors import RunError


@click.command()
@click.argument("run")
@click.option("--runs", default="runs", show_default=True, help="Where run folders are.")
@click.option("--json", "as_json", is_flag=True, help="Print the trajectory as ATIF.")
def view(run: str, runs: str, as_json: bool) -> None:
    """Show RUN: a run folder, its name, 'latest', or a trajectory file.

    A run folder is read from its log, so a run that is going on or was killed shows as far as it
    has come.

    \b
    Examples:
      baleen view latest
      baleen view runs/mine --json > trajectory.json
    """
    document = _document(run, Path(runs))
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    for line in lines(document):
        click.echo(line)


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The trajectory, line by line, styled for a terminal."""
    agent, extra = document["agent"], document.get("extra") or {}
    name = document.get("session_id", "a run without a name")
    yield click.style(f"{name} by {agent.get('model_name', 'an unnamed model')}", bold=True)
    for step in document["steps"]:
        yield ""
        yield from _step(step)
    yield ""
    yield from _ending(document.get("final_metrics") or {}, extra)


def _step(step: Mapping[str, Any]) -> Iterator[str]:
    yield click.style(f"{step['step_id']}. {step['source']}{_metrics(step)}", fg="blue")
    if reasoning := step.get("reasoning_content"):
        yield from (click.style(line, dim=True) for line in _indented(reasoning))
    if message := _text(step["message"]):
        yield from _indented(message)
    results = (step.get("observation") or {}).get("results", [])
    for call in step.get("tool_calls") or []:
        yield click.style(f"   $ {printable(_command(call))}", fg="cyan")
        for result in results:
            if result.get("source_call_id") == call["tool_call_id"]:
                yield from (f"  {line}" for line in _indented(_text(result.get("content"))))
                yield from _remarks(result.get("extra") or {})


def _metrics(step: Mapping[str, Any]) -> str:
    metrics = step.get("metrics") or {}
    if not metrics.get("completion_tokens"):
        return ""
    prompt, cached = metrics.get("prompt_tokens", 0), metrics.get("cached_tokens", 0)
    return f"  [{metrics['completion_tokens']} tokens after {prompt}, {cached} of them cached]"


def _remarks(extra: Mapping[str, Any]) -> Iterator[str]:
    if extra.get("replayed"):
        yield click.style("     [result from the sandbox's log; not run again]", dim=True)


def _ending(metrics: Mapping[str, Any], extra: Mapping[str, Any]) -> Iterator[str]:
    sampled = metrics.get("total_completion_tokens", 0)
    outcome = extra.get("outcome", "not ended")
    detail = f": {extra['detail']}" if extra.get("detail") else ""
    yield click.style(f"{outcome}{detail}", bold=True)
    yield f"{sampled} tokens sampled, {metrics.get('total_cached_tokens', 0)} prompt tokens cached"
    for resumed_at in extra.get("resumed_at") or []:
        yield f"resumed at {resumed_at}"


def _document(run: str, runs: Path) -> dict[str, Any]:
    from baleen.agent.atif_check import problems

    document = _read(Path(run)) if Path(run).is_file() else _from_folder(run, runs)
    if found := problems(document):
        raise RunError(f"{run} is no valid ATIF trajectory: {found[0]}", remedy="check the file")
    return document


def _from_folder(run: str, runs: Path) -> dict[str, Any]:
    from baleen.agent.atif import trajectory
    from baleen.agent.config import RunConfig
    from baleen.agent.endpoints import prompt_for
    from baleen.agent.journal import read_history
    from baleen.agent.run_folder import RunFolder, read_json

    folder = RunFolder.find(run, runs)
    config = RunConfig.from_json(read_json(folder.config))
    return trajectory(
        read_history(folder.wal),
        model_name=config.model_name or config.model,
        tools=prompt_for(config).tools,
    )


def _read(path: Path) -> dict[str, Any]:
    from baleen.agent.run_folder import read_json

    document: dict[str, Any] = read_json(path)
    return document


def _command(call: Mapping[str, Any]) -> str:
    arguments = call["arguments"]
    if set(arguments) == {"command"}:
        return str(arguments["command"])
    return f"{call['function_name']} {json.dumps(arguments, ensure_ascii=False)}"


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", f"[{part['type']}]")) for part in content)
    return content or ""


def _indented(text: str) -> Iterator[str]:
    return (f"   {line}" for line in printable(text).strip("\n").split("\n"))
