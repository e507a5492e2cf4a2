"""Rules and a vocabulary: which token ids may come next."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from baleen.protocol import tokens
from baleen.protocol.errors import TokenizerError
from baleen.protocol.grammar.automaton import (
    COUNT,
    LITERAL,
    MANY,
    ONE,
    RAW,
    Automaton,
    Stack,
    State,
)
from baleen.protocol.grammar.rules import CallRules
from baleen.protocol.pieces import PieceTable


class TokenMask(NamedTuple):
    """What may come next: only these ids, or all but these."""

    ids: frozenset[int]
    is_allowed: bool
    """True: only ``ids`` may come. False: all but ``ids`` may."""

    def allows(self, number: int) -> bool:
        """Whether an id may come."""
        return (number in self.ids) == self.is_allowed


_MAX_MASKS = 4096
"""Masks kept per set of rules; deep JSON has ever new states."""

FREE = TokenMask(frozenset(), is_allowed=False)
"""Anything may come."""


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
        self._masks: WeakKeyDictionary[CallRules, dict[State, TokenMask]] = WeakKeyDictionary()

    def masks_of(self, rules: CallRules) -> dict[State, TokenMask]:
        """The masks made so far for some rules; all sequences share them."""
        return self._masks.setdefault(rules, {})

    def leveled(self, state: State) -> State:
        """The state with counts that no single token can use up made equal."""
        return frozenset(_leveled(stack, self._longest + 1) for stack in state)

    def allowed(self, automaton: Automaton, state: State) -> frozenset[int]:
        """The ordinary tokens that may come in a state.

        Where a run of characters may come, most tokens are known beforehand to fit into it.
        """
        runs = [stack[0] for stack in state if stack and stack[0][0] == COUNT]
        if not runs:
            return frozenset(_walk(automaton, state, self._entries))
        _, bytes_of_run, _, most, _ = max(runs, key=lambda run: (len(run[1]), run[3] is None))
        run = self._runs.get(bytes_of_run)
        if run is None:
            run = self._runs[bytes_of_run] = Runs(self._entries, bytes_of_run)
        found = set(_walk(automaton, state, run.others))
        if most is None or most >= self._longest:
            return run.all.union(found)
        firsts = _first_bytes(state)
        longer = [e for e in run.longer_than(most) if e[0][0] in firsts]
        return run.up_to(most).union(found, _walk(automaton, state, longer))


class Runs:
    """The tokens that consist of certain bytes, by their number of characters; and all others."""

    def __init__(self, entries: list[tuple[bytes, int]], allowed: frozenset[int]) -> None:
        self._entries: list[tuple[bytes, int]] = []
        self.others: list[tuple[bytes, int]] = []
        for entry in entries:
            (self._entries if allowed.issuperset(entry[0]) else self.others).append(entry)
        self.all = frozenset(number for _, number in self._entries)
        self._sizes = [_num_characters(text) for text, _ in self._entries]

    def up_to(self, most: int) -> frozenset[int]:
        """The tokens of at most so many characters."""
        pairs = zip(self._entries, self._sizes, strict=True)
        return frozenset(number for (_, number), size in pairs if size <= most)

    def longer_than(self, most: int) -> list[tuple[bytes, int]]:
        """The entries of more characters, in order."""
        pairs = zip(self._entries, self._sizes, strict=True)
        return [entry for entry, size in pairs if size > most]


def _num_characters(text: bytes) -> int:
    """How many characters begin in a token."""
    return len(text) - sum(0x80 <= byte < 0xC0 for byte in text)


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


def _first_bytes(state: State) -> set[int]:
    """The bytes that may come next by a way other than a run of characters."""
    found: set[int] = set()
    for stack in state:
        if stack and stack[0][0] == LITERAL:
            found.add(stack[0][1][0])
        elif stack and stack[0][0] in (ONE, MANY):
            found |= stack[0][1]
    return found


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


class CallMask:
    """Follows one sequence.

    ``thinking`` says that the sequence begins in reasoning, ``in_block`` that the prompt has opened
    a block. A forced choice has no way around the block: it must follow the reasoning at once.
    """

    def __init__(
        self,
        rules: CallRules,
        vocabulary: Vocabulary,
        *,
        thinking: bool,
        in_block: bool = False,
    ) -> None:
        self._rules = rules
        self._vocabulary = vocabulary
        self._markers = vocabulary.table.markers
        self._masks = vocabulary.masks_of(rules)
        # A turn that has to call may not end in its reasoning.
        self._unended = TokenMask(vocabulary.table.ids_of(tokens.EOS), is_allowed=False)
        self._tail = b""
        self._reasons = thinking
        self._state: State | None = None
        if in_block:
            self._state = rules.invoke_start
        elif not thinking and rules.choice.forces:
            self._state = rules.forced_start

    @property
    def is_free(self) -> bool:
        """Whether anything may come; true outside calls."""
        return self._state is None and not (self._reasons and self._rules.choice.forces)

    def mask(self) -> TokenMask:
        """What may come next."""
        if self._state is None:
            return FREE if self.is_free else self._unended
        known = self._masks.get(self._state)
        if known is None:
            state = self._vocabulary.leveled(self._state)
            known = self._masks.get(state)
            if known is None:
                if len(self._masks) >= _MAX_MASKS:
                    self._masks.clear()
                known = self._masks[state] = self._mask_of(state)
        return known

    def _mask_of(self, state: State) -> TokenMask:
        automaton = self._rules.automaton
        specials = [
            number
            for number, spelling in self._markers.items()
            if automaton.after_token(state, spelling)
        ]
        if any(stack and stack[0][0] == RAW for stack in state):
            return TokenMask(self._vocabulary.specials.difference(specials), is_allowed=False)
        ordinary = self._vocabulary.allowed(automaton, state)
        return TokenMask(ordinary.union(specials), is_allowed=True)

    def accept(self, number: int) -> bool:
        """Go on with a token; False if the mask did not allow it, and nothing has changed."""
        marker = self._markers.get(number)
        if self._state is None:
            self._accept_freely(number, marker)
            return True
        automaton = self._rules.automaton
        if marker is not None:
            after = automaton.after_token(self._state, marker)
        else:
            after = self._state
            for byte in self._vocabulary.table.bytes_of(number):
                after = automaton.after_byte(after, byte)
        if not after:
            return False
        self._state = after
        return True

    def _accept_freely(self, number: int, marker: str | None) -> None:
        if marker is None:
            self._tail = (self._tail + self._vocabulary.table.bytes_of(number))[-2:]
            return
        opens = marker == tokens.DSML and self._tail.endswith(b"<")
        self._tail = b""
        if opens:
            self._state = self._rules.block_start
        elif marker == tokens.THINK_CLOSE and self._reasons:
            self._reasons = False
            if self._rules.choice.forces:
                self._state = self._rules.forced_start
