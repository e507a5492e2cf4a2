"""`baleen run`: a question, an agent, an answer."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import click

from baleen.agent.config import NANO, RunConfig, check_keys
from baleen.agent.limits import Limits
from baleen.cli.live import Live
from baleen.cli.stop import run_until_stopped
from baleen.errors import ConfigError, UsageError

_RUNS = "runs"
_DEFAULTS = Limits()


def _read_config(ctx: click.Context, _: click.Parameter, paths: tuple[str, ...]) -> None:
    """Make the keys of TOML files the defaults of this verb; later files win."""
    known = [p.name for p in ctx.command.params if p.name and p.name not in ("config", "resume")]
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}", remedy="give a TOML file") from error
        check_keys(values, known)
        merged.update(values)
    ctx.default_map = {**(ctx.default_map or {}), **merged}


@click.command()
@click.argument("question", required=False)
@click.option("--mount", metavar="DIR[:rw]", help="Folder that the agent sees, read-only.")
@click.option("-m", "--model", metavar="URL|DIR|nano", help="Who answers.  [default: nano]")
@click.option("--model-name", metavar="NAME", help="Model to ask an endpoint for.")
@click.option(
    "--prompt",
    type=click.Choice(["auto", "nano", "general"]),
    default="auto",
    help="System text and tools; auto goes by the model.",
)
@click.option("--backend", default="container", show_default=True, help="Kind of sandbox.")
@click.option("--image", default="host", show_default=True, help="What the sandbox contains.")
@click.option("--temperature", type=float, help="0 is greedy.  [default: 0 for nano and DIR]")
@click.option("--seed", type=int, help="For sampling above temperature 0.  [default: 0]")
@click.option("--max-turns", type=int, help="Turns of the model.")
@click.option("--max-tokens", type=int, help="Sampled tokens of the whole run.")
@click.option("--max-turn-tokens", type=int, help="Sampled tokens of one turn.")
@click.option("--deadline", type=float, metavar="SECONDS", help="For the whole run.")
@click.option("--command-timeout", type=float, metavar="SECONDS", help="For one command.")
@click.option("--run-dir", metavar="DIR", help="Use exactly this new folder for the run.")
@click.option("--runs", default=_RUNS, show_default=True, help="Where run folders go.")
@click.option("--resume", metavar="RUN", help="Finish a run: a folder, its name, or 'latest'.")
@click.option(
    "-c",
    "--config",
    multiple=True,
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="TOML file with any of these options.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run(
    question: str | None,
    resume: str | None,
    runs: str,
    run_dir: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Let an agent answer QUESTION with commands in a sandbox.

    The answer goes to stdout, everything else to stderr. Exit code 0 means that the model answered,
    1 that it did not (--json says why).

    \b
    Examples:
      baleen run 'Which port does staging use?' --mount examples/conf
      baleen run 'What is 4821 * 37?'
      baleen run --resume latest                # after a crash or Ctrl-C
      baleen run --model http://localhost:8000/v1 --model-name X 'Fix the test' --mount .:rw
    """
    live = Live(streaming=sys.stderr.isatty())
    if resume is not None:
        if question is not None:
            raise UsageError("--resume takes no question", remedy="the run has one already")
        work = _resume(resume, Path(runs), live)
    else:
        config = _config(question, options)
        if dry_run:
            click.echo(json.dumps(config.to_json(), indent=2, ensure_ascii=False))
            return 0
        work = _start(config, Path(runs), Path(run_dir) if run_dir else None, live)
    found = run_until_stopped(work)
    return report(found, as_json=as_json)


def report(found: dict[str, Any], *, as_json: bool) -> int:
    """Print what came of a run; returns the exit code."""
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    elif found["answer"]:
        click.echo(found["answer"])
    click.echo(f"{found['outcome']}: {found['message']}", err=True)
    if hint := found.get("hint"):
        click.echo(hint, err=True)
    return 0 if found["outcome"] == "stop" else 1


async def _start(config: RunConfig, runs: Path, run_dir: Path | None, live: Live) -> dict[str, Any]:
    from baleen.agent.runner import start

    return await start(config, runs, live, run_dir=run_dir)


async def _resume(name: str, runs: Path, live: Live) -> dict[str, Any]:
    from baleen.agent.run_folder import RunFolder
    from baleen.agent.runner import resume

    return await resume(RunFolder.find(name, runs), live)


def _config(question: str | None, options: dict[str, Any]) -> RunConfig:
    if question is None:
        raise UsageError("there is no question", remedy='baleen run "Which port does staging use?"')
    folder, mode = _mount(options["mount"])
    model = _model(options["model"], options["model_name"])
    return RunConfig(
        question=question,
        mount=folder,
        mount_mode=mode,
        model=model,
        model_name=options["model_name"],
        prompt=options["prompt"],
        backend=options["backend"],
        image=options["image"],
        temperature=options["temperature"],
        seed=options["seed"],
        limits=_limits(model, options),
    )


def _mount(text: str | None) -> tuple[str | None, str]:
    if text is None:
        return None, "ro"
    folder, separator, mode = text.rpartition(":")
    if not separator or Path(text).is_dir():
        folder, mode = text, "ro"
    return str(Path(folder).resolve()), mode


def _model(model: str | None, model_name: str | None) -> str:
    """A name without a model means the endpoint that the environment names."""
    if model is not None:
        is_folder = model != NANO and not model.startswith(("http://", "https://"))
        return str(Path(model).resolve()) if is_folder else model
    if model_name is None:
        return NANO
    base_url = os.environ.get("OPENAI_BASE_URL")
    if not base_url:
        raise UsageError(
            "--model-name is given and no endpoint",
            remedy="give --model URL or set OPENAI_BASE_URL",
        )
    return base_url


def _limits(model: str, options: dict[str, Any]) -> Limits:
    from dataclasses import replace

    from baleen.agent.endpoints import is_small
    from baleen.agent.nano import LIMITS

    given = {
        "max_turns": options["max_turns"],
        "max_tokens": options["max_tokens"],
        "max_turn_tokens": options["max_turn_tokens"],
        "deadline_s": options["deadline"],
        "command_timeout_s": options["command_timeout"],
    }
    base = LIMITS if is_small(model) else _DEFAULTS
    return replace(base, **{name: value for name, value in given.items() if value is not None})
