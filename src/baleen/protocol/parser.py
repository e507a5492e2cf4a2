"""Model output in, events and a turn out.

The result is the same however the output is cut into pieces. Given token ids and their tokenizer,
markers are recognised by id, and text that only spells one survives anywhere; given text, every
spelling counts as the marker. Whatever a model says is a result: a parser never raises on output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from baleen.errors import UsageError
from baleen.protocol.call_log import MintId
from baleen.protocol.events import Event
from baleen.protocol.ids import mint_call_id
from baleen.protocol.lexer import TextLexer
from baleen.protocol.machine import Machine
from baleen.protocol.pieces import TokenLexer
from baleen.protocol.place import Place
from baleen.protocol.schema import Schema
from baleen.protocol.tools import declared
from baleen.protocol.turn import Turn


class RepairMode(StrEnum):
    """How far a parser may go to make sense of a call."""

    OFF = "off"
    """Tags are read tolerantly, values exactly as they stand."""
    SCHEMA = "schema"
    """Values are converted where the tool's schema demands it and the result validates."""
    ALL = "all"
    """Also recover calls in other spellings of the markup."""


class Parser:
    """Parses one assistant turn, streaming.

    ``tools`` are Chat Completions definitions and type the arguments; anything else raises
    :class:`ToolSchemaError`. ``start`` continues an open turn inside its ``reasoning``, its
    ``content`` or a block of ``calls`` and keeps leading newlines; None starts a turn, in reasoning
    if ``thinking``. ``calls=False`` reports no calls. With a ``tokenizer`` the parser is fed token
    ids, else text. ``mint`` makes call ids.
    """

    def __init__(
        self,
        tools: Sequence[Any] | None = None,
        thinking: bool = True,
        start: str | None = None,
        calls: bool = True,
        repair: str = "schema",
        tokenizer: Any = None,
        mint: MintId | None = None,
    ) -> None:
        mode = _member(RepairMode, repair, "repair")
        self._machine = Machine(
            start=_start_place(start, thinking),
            keeps_leading=start is not None,
            tools=_schemas(tools),
            calls=calls,
            repair=mode is not RepairMode.OFF,
            is_token_level=tokenizer is not None,
            mint=mint or _mint,
        )
        foreign = mode is RepairMode.ALL
        self._text: TextLexer | None = None
        self._tokens: TokenLexer | None = None
        if tokenizer is None:
            self._text = TextLexer(self._machine, foreign=foreign)
        else:
            self._tokens = TokenLexer(self._machine, tokenizer, foreign=foreign)
        self._turn: Turn | None = None

    def feed(self, chunk: str | Sequence[int]) -> list[Event]:
        """Take more output, text or token ids as the parser was built for; returns what is new."""
        if self._turn is not None:
            raise UsageError("the turn is finished", remedy="make a new parser for the next turn")
        if isinstance(chunk, str):
            if self._text is None:
                raise UsageError("this parser reads token ids, not text")
            self._text.feed(chunk)
        elif self._tokens is None:
            raise UsageError("this parser reads text", remedy="pass tokenizer= to feed token ids")
        else:
            self._tokens.feed(chunk)
        events = self._machine.events
        new = events.copy()
        events.clear()
        return new

    def finish(self, reason: str = "stop") -> Turn:
        """End the turn; ``reason`` is the engine's: stop, length, or another one to pass on.

        What was held back is in the turn; the events that belong to it are in :attr:`last_events`.
        """
        if self._turn is None:
            lexer = self._text or self._tokens
            if lexer is not None:
                lexer.finish()
            self._turn = self._machine.finish(reason)
        return self._turn

    @property
    def last_events(self) -> list[Event]:
        """Events that :meth:`finish` caused."""
        return self._machine.events if self._turn is not None else []


def parse(
    text: str | Sequence[int],
    finish_reason: str = "stop",
    *,
    tools: Sequence[Any] | None = None,
    thinking: bool = True,
    start: str | None = None,
    calls: bool = True,
    repair: str = "schema",
    tokenizer: Any = None,
    mint: MintId | None = None,
) -> Turn:
    """Parse a whole output at once; arguments as for :class:`Parser`."""
    parser = Parser(tools, thinking, start, calls, repair, tokenizer, mint)
    parser.feed(text)
    return parser.finish(finish_reason)


def _mint(index: int, without_reasoning: bool) -> str:
    return mint_call_id(index, without_reasoning=without_reasoning)


def _start_place(start: str | None, thinking: bool) -> Place:
    if start is None:
        return Place.REASONING if thinking else Place.CONTENT
    places = {
        "reasoning": Place.REASONING,
        "content": Place.CONTENT,
        "calls": Place.BLOCK,
    }
    if start not in places:
        raise UsageError(
            f"start {start!r} is unknown", remedy="use reasoning, content, calls or None"
        )
    return places[start]


def _member(kind: type[RepairMode], value: str, what: str) -> RepairMode:
    try:
        return kind(value)
    except ValueError as error:
        names = ", ".join(member.value for member in kind)
        raise UsageError(f"{what} {value!r} is unknown", remedy=f"use one of {names}") from error


def _schemas(tools: Sequence[Any] | None) -> dict[str, Schema]:
    """Schemas by tool name; a definition without one types nothing."""
    schemas: dict[str, Schema] = {}
    for name, function in declared(tools or ()):
        parameters = function.get("parameters")
        if isinstance(parameters, Mapping) and parameters:
            schemas[name] = Schema(parameters)
    return schemas
