"""The tokens of a vocabulary as bytes, and which of them may come in a state of an automaton."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import cached_property
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from baleen.protocol.errors import TokenizerError
from baleen.protocol.grammar.automaton import COUNT, Automaton, Stack, State
from baleen.protocol.pieces import PieceTable


class TokenMask(NamedTuple):
    """What may come next: only these ids, or all but these."""

    ids: frozenset[int]
    is_allowed: bool
    """True: only ``ids`` may come. False: all but ``ids`` may."""

    def allows(self, number: int) -> bool:
        """Whether an id may come."""
        return (number in self.ids) == self.is_allowed


class Vocabulary:
    """The bytes of every ordinary token of a byte-level tokenizer, in order; made once."""

    def __init__(self, tokenizer: Any) -> None:
        self.table = PieceTable(tokenizer)
        if not self.table.is_byte_level:
            raise TokenizerError(
                "masks need a byte-level tokenizer", remedy="use the tokenizer of the checkpoint"
            )
        size = self.table.backend.get_vocab_size()
        known = ((self.table.bytes_of(n), n) for n in range(size) if n not in self.table.markers)
        entries = sorted(entry for entry in known if entry[0])
        self._entries = entries
        self._longest = max((len(text) for text, _ in entries), default=1)
        self._runs: dict[frozenset[int], Runs] = {}
        self.specials = frozenset(self.table.markers)
        self._masks: WeakKeyDictionary[object, dict[State, TokenMask]] = WeakKeyDictionary()

    def masks_of(self, rules: object) -> dict[State, TokenMask]:
        """The masks made so far for some rules; all sequences share them."""
        return self._masks.setdefault(rules, {})

    def leveled(self, state: State) -> State:
        """The state with counts that no single token can use up made equal."""
        return frozenset(_leveled(stack, self._longest + 1) for stack in state)

    def ordinary(self, automaton: Automaton, state: State) -> TokenMask:
        """Which of the ordinary tokens may come in a state.

        Where a run of characters may come, most tokens are known beforehand to fit into it; then
        the few that may not come are named, so that a mask costs what it refuses.
        """
        runs = [stack[0] for stack in state if stack and stack[0][0] == COUNT]
        if not runs:
            return TokenMask(frozenset(_walk(automaton, state, self._entries)), is_allowed=True)
        _, bytes_of_run, _, most, _ = max(runs, key=lambda run: (len(run[1]), run[3] is None))
        run = self._runs.get(bytes_of_run)
        if run is None:
            run = self._runs[bytes_of_run] = Runs(self._entries, bytes_of_run)
        fitting, longer = run.split(self._longest if most is None else most)
        doubtful = (run.others, sorted(longer))
        found = {number for entries in doubtful for number in _walk(automaton, state, entries)}
        if len(fitting) < len(longer) + len(run.others):
            return TokenMask(frozenset(found.union(fitting)), is_allowed=True)
        refused = run.numbers_of_others.union(number for _, number in longer)
        return TokenMask(refused - found, is_allowed=False)


class Runs:
    """The tokens that consist of certain bytes, by their number of characters; and all others."""

    def __init__(self, entries: list[tuple[bytes, int]], allowed: frozenset[int]) -> None:
        deleted = bytes(allowed)
        self.others: list[tuple[bytes, int]] = []
        """In order."""
        by_size: dict[int, list[tuple[bytes, int]]] = {}
        for entry in entries:
            text = entry[0]
            if text.translate(None, deleted):
                self.others.append(entry)
            else:
                by_size.setdefault(_num_characters(text), []).append(entry)
        self._entries = [entry for size in sorted(by_size) for entry in by_size[size]]
        self._sizes = [size for size in sorted(by_size) for _ in by_size[size]]
        self._numbers = [number for _, number in self._entries]

    @cached_property
    def numbers_of_others(self) -> frozenset[int]:
        """The tokens that hold another byte."""
        return frozenset(number for _, number in self.others)

    def split(self, most: int) -> tuple[list[int], list[tuple[bytes, int]]]:
        """The numbers of the tokens of at most so many characters; those of more, as entries."""
        cut = bisect_right(self._sizes, most)
        return self._numbers[:cut], self._entries[cut:]


_CONTINUING: Final = bytes(range(0x80, 0xC0))


def _num_characters(text: bytes) -> int:
    """How many characters begin in a token."""
    return len(text) if text.isascii() else len(text.translate(None, _CONTINUING))


def _leveled(stack: Stack, limit: int, depth: int = 4) -> Stack:
    """Counts stand on top of a stack, or right below an escape that was begun."""
    if not stack or not depth:
        return stack
    symbol, below = stack
    if symbol[0] == COUNT:
        kind, allowed, least, most, escapes = symbol
        most = most if most is None else min(most, limit)
        return ((kind, allowed, min(least, limit), most, escapes), below)
    rest = _leveled(below, limit, depth - 1)
    return stack if rest is below else (symbol, rest)


def _walk(automaton: Automaton, state: State, entries: list[tuple[bytes, int]]) -> list[int]:
    """Try the entries in order; a prefix that fails once is skipped with all that have it."""
    found: list[int] = []
    path = [state]
    read = b""
    place = 0
    while place < len(entries):
        text, number = entries[place]
        shared = _shared_length(read, text, len(path) - 1)
        del path[shared + 1 :]
        for depth in range(shared, len(text)):
            after = automaton.after_byte(path[-1], text[depth])
            if not after:
                read = text[:depth]
                place = bisect_left(entries, (_behind(text[: depth + 1]), -1), place + 1)
                break
            path.append(after)
        else:
            found.append(number)
            read = text
            place += 1
    return found


def _shared_length(first: bytes, second: bytes, limit: int) -> int:
    length = 0
    for one, other in zip(first[:limit], second, strict=False):
        if one != other:
            break
        length += 1
    return length


def _behind(prefix: bytes) -> bytes:
    """The first text in order that lies behind all texts with this prefix."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b"\xff" * 64
    return stripped[:-1] + bytes([stripped[-1] + 1])
