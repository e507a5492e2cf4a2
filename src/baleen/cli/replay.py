"""`baleen replay`: the commands of a trajectory, from the log alone or done again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from baleen.cli.live import printable
from baleen.errors import UsageError

if TYPE_CHECKING:
    from baleen.sandbox.replay import Command, Verdict

DIVERGED = 1


@click.command()
@click.argument("run")
@click.option("--runs", default="runs", show_default=True, help="Where run folders are.")
@click.option("--verify", "again", is_flag=True, help="Run the commands again and compare.")
@click.option("--json", "as_json", is_flag=True, help="Print one object per log.")
def replay(run: str, runs: str, again: bool, as_json: bool) -> None:
    """Show what RUN's commands gave: a run folder, its name, 'latest', a box, or a log file.

    Nothing is run unless --verify is given: then every command runs again in a fresh box on the
    recorded layers, and the first result that differs ends it with exit code 1.

    \b
    Examples:
      baleen replay latest             # what ran, and what it gave
      baleen replay latest --verify    # run it all again and compare
    """
    from baleen.sandbox.replay import Trajectory, verify

    diverged = False
    for log in _logs(run, Path(runs)):
        if not again:
            _show(log, Trajectory(log).commands, as_json)
            continue
        verdict = asyncio.run(verify(log, on_command=None if as_json else _announce))
        diverged |= verdict.divergence is not None
        _tell(log, verdict, as_json)
    sys.exit(DIVERGED if diverged else 0)


def _logs(run: str, runs: Path) -> Iterator[Path]:
    """The sandbox logs that a name stands for."""
    from baleen.sandbox.home import Home

    path = Path(run)
    if path.is_file():
        yield path
        return
    if (log := Home.default().log_of(run)) is not None:
        yield log
        return
    folder = path if path.is_dir() else runs / run
    found = sorted(folder.glob("sandbox*.log"), key=lambda log: (len(log.name), log.name))
    if not found:
        raise UsageError(
            f"{run!r} is no log, no box and no run with a sandbox log",
            remedy="see `baleen sandbox ps`, or name a file",
        )
    yield from found


def _line(command: Command) -> str:
    argv = [part if isinstance(part, str) else repr(part) for part in command.job["argv"]]
    return printable(shlex.join(argv))


def _announce(command: Command) -> None:
    click.echo(f"{command.seq}: {_line(command)}", err=True)


def _show(log: Path, commands: list[Command], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"log": str(log), "commands": [_as_data(c) for c in commands]}))
        return
    for command in commands:
        end = "no result" if command.result is None else f"exit {command.result.exit_code}"
        click.echo(f"{command.seq}: {_line(command)}  [{end}]")
        if command.result is not None and command.result.stdout:
            click.echo(printable(command.result.text.rstrip("\n")))


def _as_data(command: Command) -> dict[str, Any]:
    result = command.result
    data: dict[str, Any] = {"seq": command.seq, "key": command.key, "command": _line(command)}
    if result is not None:
        data |= {
            "exit_code": result.exit_code,
            "timed_out": result.timed_out,
            "stdout": result.text,
            "stderr": result.stderr.decode("utf-8", "replace"),
        }
    return data


def _tell(log: Path, verdict: Verdict, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"log": str(log), **dataclasses.asdict(verdict)}))
        return
    for remark in verdict.remarks:
        click.echo(f"note: {remark}", err=True)
    found = verdict.divergence
    if found is None:
        click.echo(f"{log}: {verdict.commands} commands ran again with the same results")
        return
    click.echo(
        f"{log}: record {found.seq} differs in {found.field}: {printable(' '.join(found.argv))}"
    )
    click.echo(f"  expected {printable(str(found.expected))}")
    click.echo(f"  seen     {printable(str(found.seen))}")
