"""`baleen chat`: talk to a model on the terminal."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import click

from baleen.agent.config import NANO
from baleen.agent.endpoints import is_small
from baleen.errors import BaleenError, UsageError

if TYPE_CHECKING:
    from baleen.cli.conversation import Conversation

_PROMPT = "> "


@click.command()
@click.option("-m", "--model", metavar="URL|DIR|nano", default=NANO, help="Who answers.")
@click.option("--model-name", metavar="NAME", help="Model to ask an endpoint for.")
@click.option("--system", metavar="TEXT", help="What the model is told first.")
@click.option("--temperature", type=float, help="0 is greedy.  [default: the server's]")
@click.option("--max-tokens", type=int, help="Tokens of one answer.  [default: the server's]")
def chat(
    model: str,
    model_name: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
) -> int:
    """Talk to a model: its answers go to stdout, its reasoning and everything else to stderr.

    URL is any Chat Completions endpoint; a folder or `nano` is served within this process. Lines
    that begin with a slash are commands, /help lists them. Ctrl-C ends an answer, Ctrl-D the talk.

    \b
    Examples:
      baleen chat
      baleen chat --model http://localhost:8000/v1
      echo 'What is 4821 * 37?' | baleen chat
    """
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            if is_small(model):
                click.echo(
                    "baleen: the bundled checkpoint is small: it was trained to look things up and"
                    " to calculate with tools (baleen run), and its talk means little",
                    err=True,
                )
            talk = runner.run(_open(stack, model, model_name))
            talk.set_options(system=system, temperature=temperature, max_tokens=max_tokens)
            return _read_and_answer(runner, talk)
        finally:
            runner.run(stack.aclose())


async def _open(stack: AsyncExitStack, model: str, model_name: str | None) -> Conversation:
    """Reach an endpoint, or serve a model here and reach that."""
    from baleen.agent.openai import OpenAIEndpoint
    from baleen.cli.conversation import Conversation

    url = model
    if "://" in model and not model.startswith(("http://", "https://")):
        raise UsageError(f"{model} is no address", remedy="give http://HOST:PORT/v1")
    if not model.startswith(("http://", "https://")):
        from baleen.server.serving import ServeOptions, defaults_for, open_server

        server = await open_server(ServeOptions(model=model, config=defaults_for(model)))
        stack.push_async_callback(server.stop)
        url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}/v1"
    endpoint = await OpenAIEndpoint.connect(url, model_name, tools=())
    stack.push_async_callback(endpoint.close)
    return Conversation(endpoint)


def _read_and_answer(runner: asyncio.Runner, talk: Conversation) -> int:
    """Line by line, until the end; returns the exit code of the last answer."""
    from baleen.cli.chat_commands import run_command

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  # gives input() a history and arrow keys
        click.echo(f"{talk.name}: /help lists the commands, Ctrl-D ends the talk", err=True)
    code = 0
    while True:
        try:
            line = input(_PROMPT) if is_terminal else sys.stdin.readline()
        except EOFError:
            click.echo(err=True)
            return code
        if not line and not is_terminal:
            return code
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if not run_command(line.strip(), talk, runner):
                    return code
            else:
                runner.run(talk.ask(line.rstrip("\n")))
            code = 0
        except BaleenError as error:
            code = 1
            click.echo(f"baleen: {error}", err=True)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            click.echo("\nbaleen: the answer was broken off; the question is forgotten", err=True)
