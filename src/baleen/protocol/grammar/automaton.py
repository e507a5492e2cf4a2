"""A pushdown automaton over bytes and special tokens.

A state is a set of stacks, each one way in which the input so far can be read; a stack is a nested
pair ``(symbol, stack below)``, empty when everything has been read. Symbols are tuples, so states
can be keys of caches. Terminals read a byte or a special token; every other symbol is replaced by
what :class:`Rules` says it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

Symbol = tuple[Any, ...]
Stack = tuple[Any, ...]
State = frozenset[Stack]

LITERAL: Final = "literal"
"""``(LITERAL, bytes)``: exactly these bytes."""
ONE: Final = "one"
"""``(ONE, byte set)``: one of these bytes."""
MANY: Final = "many"
"""``(MANY, byte set)``: any number of these bytes."""
COUNT: Final = "count"
"""``(COUNT, byte set, least, most, escapes)``: so many characters of these bytes; None: no bound.

Each escape is a sequence of terminals that may stand in place of one character.
"""
TOKEN: Final = "token"
"""``(TOKEN, spelling)``: this special token."""
RAW: Final = "raw"
"""``(RAW, spelling, tail)``: any text up to ``</`` and this special token.

The tail says how much of ``</`` has just been read: 0, 1 or 2 characters.
"""

_TERMINALS: Final = frozenset({LITERAL, ONE, MANY, COUNT, TOKEN, RAW})
_MAX_STEPS: Final = 200_000
_LESS: Final = ord("<")
_SLASH: Final = ord("/")


class Rules(Protocol):
    """What the symbols of a grammar stand for."""

    def expand(self, symbol: Symbol) -> Iterable[Sequence[Symbol]]:
        """The sequences that a symbol may be replaced by."""


class Automaton:
    """Follows one grammar; remembers the steps it has taken."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._after_byte: dict[State, dict[int, State]] = {}
        self._states: dict[State, State] = {}
        self._num_steps = 0

    def start(self, symbols: Sequence[Symbol]) -> State:
        """The state before a sequence of symbols."""
        return self._closed([push(symbols, ())])

    def _closed(self, stacks: Iterable[Stack]) -> State:
        """Replace symbols until every stack begins with a terminal."""
        found: set[Stack] = set()
        todo = list(stacks)
        seen: set[Stack] = set(todo)
        while todo:
            stack = todo.pop()
            if not stack or stack[0][0] in _TERMINALS:
                found.add(stack)
                replacements = _ways_on(stack)
            else:
                symbol, below = stack
                replacements = [push(seq, below) for seq in self._rules.expand(symbol)]
            for replacement in replacements:
                if replacement not in seen:
                    seen.add(replacement)
                    todo.append(replacement)
        return frozenset(found)

    def after_byte(self, state: State, byte: int) -> State:
        """The state after one byte; empty if it may not come."""
        steps = self._after_byte.get(state)
        if steps is None:
            steps = self._after_byte[state] = {}
        known = steps.get(byte)
        if known is None:
            if self._num_steps >= _MAX_STEPS:
                self._after_byte.clear()
                self._states.clear()
                self._num_steps = 0
                steps = self._after_byte[state] = {}
            self._num_steps += 1
            stacks = [after for stack in state if (after := _read(stack, byte)) is not None]
            known = steps[byte] = self._kept(self._closed(stacks))
        return known

    def _kept(self, state: State) -> State:
        """The same object for equal states: looking up an equal one compares whole stacks."""
        return self._states.setdefault(state, state)

    def after_token(self, state: State, token: str) -> State:
        """The state after a special token; empty if it may not come."""
        stacks = []
        for stack in state:
            if stack and (stack[0] == (TOKEN, token) or stack[0] == (RAW, token, 2)):
                stacks.append(stack[1])
        return self._closed(stacks)


def _ways_on(stack: Stack) -> list[Stack]:
    """What a repeating terminal may be replaced by without reading anything."""
    if not stack or stack[0][0] not in (MANY, COUNT):
        return []
    symbol, below = stack
    if symbol[0] == MANY:
        return [below]
    ways = [below] if not symbol[2] else []
    if symbol[3] != 0:
        ways += [push((*escape, one_less(symbol)), below) for escape in symbol[4]]
    return ways


def one_less(symbol: Symbol) -> Symbol:
    """A count after one character."""
    kind, allowed, least, most, escapes = symbol
    return (kind, allowed, max(least - 1, 0), None if most is None else most - 1, escapes)


def push(symbols: Sequence[Symbol], below: Stack) -> Stack:
    """A stack with a sequence on top."""
    for symbol in reversed(symbols):
        below = (symbol, below)
    return below


def _read(stack: Stack, byte: int) -> Stack | None:
    if not stack:
        return None
    symbol, below = stack
    kind = symbol[0]
    if kind == LITERAL:
        text = symbol[1]
        if text[0] != byte:
            return None
        return ((LITERAL, text[1:]), below) if len(text) > 1 else below
    if kind == ONE:
        return below if byte in symbol[1] else None
    if kind == MANY:
        return stack if byte in symbol[1] else None
    if kind == COUNT:
        if byte not in symbol[1]:
            return None
        if 0x80 <= byte < 0xC0:  # goes on with a character that has been counted
            return stack
        return (one_less(symbol), below) if symbol[3] != 0 else None
    if kind == RAW:
        return (_after_raw(symbol, byte), below)
    return None


def _after_raw(symbol: Symbol, byte: int) -> Symbol:
    _, token, tail = symbol
    if byte == _LESS:
        return (RAW, token, 1)
    return (RAW, token, 2 if byte == _SLASH and tail == 1 else 0)
