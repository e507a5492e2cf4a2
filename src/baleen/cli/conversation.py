"""One conversation with an endpoint: what was said, how the model thinks, and how it is shown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from baleen.agent.base import Usage, Watch
from baleen.cli.live import printable

if TYPE_CHECKING:
    from baleen.agent.openai import OpenAIEndpoint

THINK_MAX_TOKENS: Final = 393_216
"""The context that thinking with the greatest effort is meant to have."""


class Conversation:
    """Asks, shows the answer as it comes, and remembers both."""

    def __init__(self, endpoint: OpenAIEndpoint) -> None:
        self._endpoint = endpoint
        self._messages: list[dict[str, Any]] = []
        self._system: str | None = None
        self._max_tokens: int | None = None
        self._options: dict[str, Any] = {}
        self._thinking: dict[str, Any] = {}
        self._attached: list[str] = []
        self._usage = Usage()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._endpoint.name

    def set_options(
        self, *, system: str | None, temperature: float | None, max_tokens: int | None
    ) -> None:
        """What holds for the whole conversation; None leaves it to the server."""
        self._system, self._max_tokens = system, max_tokens
        if temperature is not None:
            self._options["temperature"] = temperature

    def think(self, *, enabled: bool, effort: str | None = None) -> None:
        """How answers from now on are thought about; before the first call the server decides."""
        self._thinking = {"thinking": {"type": "enabled" if enabled else "disabled"}}
        if effort is not None:
            self._thinking["reasoning_effort"] = effort

    def attach(self, name: str, text: str) -> None:
        """Put a text in front of the next question."""
        self._attached.append(f"{name}:\n```\n{text}\n```")

    def forget(self) -> None:
        """Begin anew."""
        self._messages, self._attached, self._usage = [], [], Usage()

    async def ask(self, question: str) -> None:
        """Ask, and show the answer; when it fails or is broken off, nothing was asked.

        Raises:
            EndpointError: the model cannot be reached, or refuses.
        """
        content = "\n\n".join([*self._attached, question])
        system = [{"role": "system", "content": self._system}] if self._system else []
        asked = {"role": "user", "content": content}
        shown = _Shown()
        try:
            turn = await self._endpoint.converse(
                [*system, *self._messages, asked],
                self._max_tokens,
                shown,
                **self._options,
                **self._thinking,
            )
        finally:
            shown.end()
        said: dict[str, Any] = {"role": "assistant", "content": turn.content}
        said |= dict.fromkeys(turn.reasoning_fields, turn.reasoning)
        self._messages += [asked, said]
        self._attached, self._usage = [], turn.usage
        if turn.finish_reason == "length":
            click.echo("baleen: the answer was cut off by the limit on tokens", err=True)

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation so far, as the server counted them."""
        return self._usage.prompt_tokens + self._usage.completion_tokens

    async def context_tokens(self) -> int | None:
        """How many tokens the model's context has; None where the server does not say."""
        return await self._endpoint.context_tokens()


class _Shown(Watch):
    """Reasoning dim on stderr, the answer on stdout."""

    def __init__(self) -> None:
        self._open: str | None = None
        self._reasoning_ends_line = self._content_ends_line = True

    def reasoning(self, text: str) -> None:
        """Show reasoning."""
        self._open = "reasoning"
        self._reasoning_ends_line = text.endswith("\n")
        click.echo(click.style(printable(text), dim=True), nl=False, err=True)

    def content(self, text: str) -> None:
        """Show some of the answer."""
        if self._open == "reasoning" and not self._reasoning_ends_line:
            click.echo(err=True)
        self._open = "content"
        self._content_ends_line = text.endswith("\n")
        click.echo(printable(text) if sys.stdout.isatty() else text, nl=False)
        sys.stdout.flush()

    def end(self) -> None:
        """End the line that was begun."""
        if self._open == "reasoning" and not self._reasoning_ends_line:
            click.echo(err=True)
        if self._open == "content" and not self._content_ends_line:
            click.echo()
