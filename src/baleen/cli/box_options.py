"""What verbs say of a box or of a command in it, read from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from baleen.errors import UsageError
from baleen.sandbox import Allowlist

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def parse_mount(text: str) -> tuple[str, str, str]:
    """SOURCE:TARGET or SOURCE:TARGET:ro|rw."""
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise UsageError(f"mount {text!r} is not SOURCE:TARGET[:rw]")
    return parts[0], parts[1], parts[2] if len(parts) == 3 else "ro"


def parse_network(text: str) -> str | Allowlist:
    """none, public, or HOST:PORT with commas between."""
    return text if text in ("none", "public") else Allowlist(text.split(","))


def parse_labels(entries: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE each."""
    pairs = [entry.partition("=") for entry in entries]
    return {name: value for name, _, value in pairs}


def command_options(function: Any) -> Any:
    """The options that ``run`` and ``exec`` share."""
    for option in (
        JSON,
        click.option("--timeout", type=float, help="Seconds until the command's tree is killed."),
        click.option("-w", "--workdir", help="Folder in the box."),
        click.option("-u", "--user", help="User of the box: name, uid or uid:gid."),
        click.option(
            "-e",
            "--env",
            multiple=True,
            metavar="NAME[=VALUE]",
            help="Without value: this shell's.",
        ),
        click.option("-t", "--tty", is_flag=True, help="Run on a terminal."),
        click.option("-i", "--interactive", is_flag=True, help="Pass standard input on."),
    ):
        function = option(function)
    return function
