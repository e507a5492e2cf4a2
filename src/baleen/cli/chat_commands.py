"""What lines of `baleen chat` that begin with a slash do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import click

from baleen.cli.conversation import THINK_MAX_TOKENS, Conversation
from baleen.errors import UsageError

Do = Callable[[Conversation, asyncio.Runner, str], bool]
"""Is given what follows the name; False ends the talk."""

_MAX_READ_BYTES: Final = 1 << 20


class Command(NamedTuple):
    """One of them."""

    do: Do
    help: str


def run_command(line: str, talk: Conversation, runner: asyncio.Runner) -> bool:
    """Do what a line says; False if the talk is to end.

    Raises:
        UsageError: there is no such command, or it cannot be done.
    """
    name, _, rest = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"there is no command {name}", remedy=f"there are {', '.join(COMMANDS)}")
    return command.do(talk, runner, rest.strip())


def _help(talk: Conversation, runner: asyncio.Runner, rest: str) -> bool:
    width = max(map(len, COMMANDS))
    for name, command in COMMANDS.items():
        click.echo(f"  {name:{width}}  {command.help}", err=True)
    return True


def _think(talk: Conversation, runner: asyncio.Runner, rest: str) -> bool:
    talk.think(enabled=True, effort="high")
    return True


def _think_max(talk: Conversation, runner: asyncio.Runner, rest: str) -> bool:
    talk.think(enabled=True, effort="max")
    context = runner.run(talk.context_tokens())
    if context is not None and context < THINK_MAX_TOKENS:
        click.echo(
            f"baleen: thinking at most wants a context of {THINK_MAX_TOKENS} tokens,"
            f" this one has {context}",
            err=True,
        )
    return True


def _no_think(talk: Conversation, runner: asyncio.Runner, rest: str) -> bool:
    talk.think(enabled=False)
    return True


def _context(talk: Conversation, runner: asyncio.Runner, rest: str) -> bool:
    context = runner.run(talk.context_tokens())
    of = "" if context is None else f" of {context}, {max(0, context - talk.num_tokens)} left"
    click.echo(f"  {talk.num_tokens} tokens{of}", err=True)
    return True


def _read(talk: Conversation, runner: asyncio.Runner, rest: str) -> bool:
    if not rest:
        raise UsageError("/read needs a file", remedy="/read PATH")
    path = Path(rest).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_READ_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_READ_BYTES:
        raise UsageError(f"{path} has more than {_MAX_READ_BYTES} bytes", remedy="read a part")
    talk.attach(path.name, data.decode("utf-8", "replace"))
    click.echo(f"  {len(data)} bytes stand in front of your next question", err=True)
    return True


def _new(talk: Conversation, runner: asyncio.Runner, rest: str) -> bool:
    talk.forget()
    return True


def _quit(talk: Conversation, runner: asyncio.Runner, rest: str) -> bool:
    return False


COMMANDS: Final = {
    "/help": Command(_help, "this list"),
    "/think": Command(_think, "think before answering"),
    "/think-max": Command(_think_max, "think at length"),
    "/nothink": Command(_no_think, "answer at once"),
    "/ctx": Command(_context, "tokens used and left"),
    "/read": Command(_read, "put a file in front of the next question: /read PATH"),
    "/new": Command(_new, "forget what was said"),
    "/quit": Command(_quit, "end the talk, as Ctrl-D does"),
}
