"""The call grammar as text, for engines that have grammars of their own.

The rules are those of :mod:`baleen.protocol.grammar`; every symbol becomes a named rule. Rules that
remember which properties were written grow with the subsets of these, so beyond a few properties
the required ones alone are remembered, and beyond a few required ones none: then the grammar still
knows names and types, and what is missing is left to whoever validates the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from baleen.protocol import tokens
from baleen.protocol.grammar import CallRules
from baleen.protocol.grammar.automaton import LITERAL, MANY, ONE, RAW, TOKEN, Symbol
from baleen.protocol.grammar.json_rules import JsonRules
from baleen.protocol.revision import Flavor
from baleen.protocol.schema import Schema
from baleen.protocol.tool_choice import read_tool_choice
from baleen.protocol.tools import read_tools
from baleen.server.base import Constraint

_MAX_REMEMBERED: Final = 4

Spell = Callable[[str], str]


def rules_for(constraint: Constraint, revision: str) -> CallRules:
    """The rules of a constraint's tools."""
    tools = read_tools(list(constraint.tools), Flavor.API, str, closes=False)
    choice = read_tool_choice(constraint.choice, tools)
    return CallRules(tools, choice, revision, parallel=constraint.parallel)


class _JsonAlone:
    """Rules of JSON without calls around it."""

    def __init__(self) -> None:
        self._json = JsonRules()
        self.expand = self._json.expand


def json_lines(schema: Any, token: Spell) -> list[str]:
    """Rules for a JSON value of a schema, the first of which is ``call``."""
    rules = _JsonAlone()
    value = rules._json.value(Schema(schema), strings=True)
    return EbnfWriter(rules, token=token, raw='""').write([value])


class EbnfWriter:
    """Writes rules reachable from a start.

    ``token`` spells a special token, ``raw`` is the rule of a raw string up to and with its closer.
    """

    def __init__(self, rules: CallRules | _JsonAlone, *, token: Spell, raw: str) -> None:
        self._rules, self._token, self._raw = rules, token, raw
        self._names: dict[Symbol, str] = {}
        self._pending: list[Symbol] = []

    def write(self, start: Sequence[Symbol]) -> list[str]:
        """Rules, the first of which is ``call``."""
        lines = [f"call ::= {self._sequence(start)}"]
        while self._pending:
            symbol = self._pending.pop()
            options = [self._sequence(option) for option in self._expand(symbol)]
            lines.append(f"{self._names[symbol]} ::= {' | '.join(options)}")
        lines.append(f"raw ::= {self._raw}")
        return lines

    def _sequence(self, symbols: Sequence[Symbol]) -> str:
        return " ".join(filter(None, map(self._spell, symbols))) or '""'

    def _spell(self, symbol: Symbol) -> str:
        kind = symbol[0]
        if kind == LITERAL:
            return quoted(symbol[1].decode())
        if kind == TOKEN:
            # The end of a turn is the end of the grammar.
            return self._token(symbol[1]) if symbol[1] != tokens.EOS else ""
        if kind == RAW:
            return "raw"
        if kind in (ONE, MANY):
            return _char_class(symbol[1]) + ("*" if kind == MANY else "")
        known = self._names.get(symbol)
        if known is None:
            known = self._names[symbol] = f"r{len(self._names)}"
            self._pending.append(symbol)
        return known

    def _expand(self, symbol: Symbol) -> list[Sequence[Symbol]]:
        if symbol[0] not in ("parameters", "members"):
            return list(self._rules.expand(symbol))
        schema = self._schema(symbol)
        required = frozenset(schema.node.get("required") or ())
        if len(schema.properties) <= _MAX_REMEMBERED:
            return list(self._rules.expand(symbol))
        kept = symbol[2] & required if len(required) <= _MAX_REMEMBERED else frozenset()
        if kept != symbol[2]:
            return [[(*symbol[:2], kept)]]
        found = list(self._rules.expand(symbol))
        if len(required) > _MAX_REMEMBERED:
            found += self._rules.expand((*symbol[:2], required))
        return found

    def _schema(self, symbol: Symbol) -> Schema:
        rules: Any = self._rules
        if symbol[0] == "parameters":
            return _plain(rules._schemas[symbol[1]])
        return _plain(rules._json._schemas[symbol[1]])


def _plain(schema: Schema) -> Schema:
    return schema if isinstance(schema.node, dict) else Schema({})


DSML: Final[Symbol] = (TOKEN, tokens.DSML)
BLOCK: Final[tuple[Symbol, ...]] = (("block",),)
"""Behind the DSML token of a block's opener."""
FORCED: Final[tuple[Symbol, ...]] = ((LITERAL, b"\n\n<"), DSML, ("block",))
"""Behind the reasoning of a turn that has to call."""
INVOKE: Final[tuple[Symbol, ...]] = ((LITERAL, b"<"), DSML, ("invoke",))
"""Within a block that the prompt has opened."""


def quoted(text: str) -> str:
    """A literal of a grammar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _char_class(numbers: frozenset[int]) -> str:
    """A class of characters; beyond ASCII it is all or nothing, as the rules have it."""
    inside = sorted(number for number in numbers if number < 0x80)
    if max(numbers) >= 0x80:
        outside = [n for n in range(0x80) if n not in numbers]
        return "[^" + "".join(map(_escaped, _ranges(outside))) + "]"
    return "[" + "".join(map(_escaped, _ranges(inside))) + "]"


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _escaped(ends: tuple[int, int]) -> str:
    low, high = (f"\\x{number:02x}" for number in ends)
    return low if low == high else f"{low}-{high}"
