"""A run on the terminal, as it happens: reasoning dim, commands, outputs, tokens per second.

Everything goes to stderr. On a terminal text appears as it is sampled; into a file or a pipe goes
one line per event. Control characters are shown, not obeyed: they come from a model or a command.
"""

from __future__ import annotations

import click

from baleen.agent.base import ToolCall, Turn, Watch
from baleen.agent.summary import command_line

_SHOWN_LINES = 20


class Live(Watch):
    """Shows a run."""

    def __init__(self, *, streaming: bool) -> None:
        self._streaming = streaming
        self._in_line = ""
        self._texts: dict[str, list[str]] = {"reasoning": [], "content": []}

    def note(self, text: str) -> None:
        """Show a remark of baleen's own."""
        self._end_line()
        _say(click.style(f"- {text}", fg="blue"))

    def reasoning(self, text: str) -> None:
        """Show reasoning, dim."""
        self._stream("reasoning", text)

    def content(self, text: str) -> None:
        """Show the answer as it grows."""
        self._stream("content", text)

    def turn_ended(self, turn: Turn) -> None:
        """Show what has not been streamed, and the speed."""
        self._end_line()
        for kind, parts in self._texts.items():
            if text := "".join(parts).strip():
                _say(_styled(kind, printable(text).replace("\n", "\n  ")))
            parts.clear()
        if turn.tokens_per_s:
            count = f"{turn.usage.completion_tokens} tokens, {turn.tokens_per_s:.0f} tokens/s"
            _say(click.style(f"  [{count}]", dim=True))

    def call_started(self, call: ToolCall) -> None:
        """Show a command before it runs."""
        self._end_line()
        _say(click.style(f"$ {printable(command_line(call))}", fg="cyan", bold=True))

    def call_ended(self, call: ToolCall, text: str) -> None:
        """Show what the model is shown, or the head of it."""
        lines = printable(text).split("\n")
        for line in lines[:_SHOWN_LINES]:
            _say(f"  {line}")
        if len(lines) > _SHOWN_LINES:
            _say(click.style(f"  [{len(lines) - _SHOWN_LINES} more lines]", dim=True))

    def _stream(self, kind: str, text: str) -> None:
        if not self._streaming:
            self._texts[kind].append(text)
            return
        if self._in_line != kind:
            self._end_line()
        self._in_line = kind
        click.echo(_styled(kind, printable(text)), nl=False, err=True)

    def _end_line(self) -> None:
        if self._in_line:
            _say("")
        self._in_line = ""


def printable(text: str) -> str:
    """The text with control characters other than newline and tab made visible."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _styled(kind: str, text: str) -> str:
    return click.style(text, dim=True) if kind == "reasoning" else click.style(text, bold=True)


def _say(text: str) -> None:
    click.echo(text, err=True)
