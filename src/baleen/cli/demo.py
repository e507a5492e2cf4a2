"""`baleen demo`: an agent is killed in the middle of its work and finishes it all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from baleen.errors import RunError

if TYPE_CHECKING:
    from baleen.agent.history import History
    from baleen.agent.run_folder import RunFolder

QUESTION = "Which port does staging use?"
_KILL_AFTER_TOKENS = 10
"""Far enough into the second turn that there is reasoning to lose."""
_POLL_S = 0.002


@click.command()
@click.option("-m", "--model", metavar="DIR|nano", default="nano", help="Who answers.")
@click.option("--runs", default="runs", show_default=True, help="Where run folders go.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(model: str, runs: str, as_json: bool) -> int:
    """Kill an agent in mid-task and watch it finish.

    The bundled checkpoint is asked for a setting in a folder of small configuration files. When its
    first command has run and it is thinking about the second, its process is killed with SIGKILL. A
    new process takes the run over. Needs no network, no GPU and no root.
    """
    from baleen.agent.run_folder import RunFolder
    from baleen.assets import ROOT

    run_dir = Path(runs).resolve() / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-demo-{os.getpid()}"
    mount = str(ROOT / "conf")
    say(f"$ baleen run {QUESTION!r} --mount {mount}")
    with _agent([QUESTION, "--mount", mount, "-m", model, "--run-dir", str(run_dir)]) as first:
        at_kill = _kill_in_the_middle(first, RunFolder(run_dir))
    if at_kill is None:  # it has said why
        return 1
    say(f"\n$ kill -9 {first.pid}\n$ baleen run --resume {run_dir.name}")
    with _agent(["--resume", str(run_dir)]) as second:
        output, _ = second.communicate()
    found = json.loads(output) if second.returncode in (0, 1) else {"error": None}
    if "error" in found:  # it has said why
        return 1
    from baleen.cli.scoreboard import scoreboard, table

    scores = scoreboard(RunFolder(run_dir), found, at_kill)
    if as_json:
        click.echo(json.dumps({**found, "scoreboard": scores}, ensure_ascii=False))
    else:
        click.echo(f"\n{QUESTION} {found['answer'] or '(no answer)'}\n")
        for line in table(scores):
            click.echo(line)
    return 0 if found["outcome"] == "stop" else 1


def say(text: str) -> None:
    """Talk goes to stderr."""
    click.echo(click.style(text, bold=True), err=True)


def _agent(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "baleen.cli.main", "run", "--json", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _kill_in_the_middle(agent: subprocess.Popen[str], folder: RunFolder) -> History | None:
    """Wait until a command has run and the next turn has begun, then SIGKILL.

    Returns:
        What was on record at that moment; None if the agent had failed before.

    Raises:
        RunError: the agent ended well before there was anything to interrupt.
    """
    from baleen.agent.journal import read_history

    while agent.poll() is None:
        if folder.wal.exists() and _is_in_the_middle(read_history(folder.wal)):
            agent.kill()
            agent.wait()
            return read_history(folder.wal)
        time.sleep(_POLL_S)
    if agent.returncode == 0:
        raise RunError("the agent answered without a second turn", remedy="see its run folder")
    return None


def _is_in_the_middle(history: History) -> bool:
    current = history.current
    has_run = any(state.result is not None for state in history.calls)
    return has_run and current is not None and len(current.token_ids) >= _KILL_AFTER_TOKENS
