"""Rules and a vocabulary: which token ids may come next."""

from __future__ import annotations

from typing import Protocol

from baleen.protocol import tokens
from baleen.protocol.grammar.automaton import RAW, Automaton, State
from baleen.protocol.grammar.vocabulary import TokenMask, Vocabulary

_MAX_MASKS = 4096
"""Masks kept per set of rules; deep JSON has ever new states."""

FREE = TokenMask(frozenset(), is_allowed=False)
"""Anything may come."""


class TurnRules(Protocol):
    """What a turn may look like: that of calls, or that of an answer in a form."""

    @property
    def automaton(self) -> Automaton:
        """Follows the rules."""

    @property
    def forces(self) -> bool:
        """Whether what follows the reasoning is held to them from its first token on."""

    @property
    def forced_start(self) -> State:
        """The state behind the reasoning, if it is."""

    @property
    def block_start(self) -> State | None:
        """The state behind the DSML token of a block's opener; None: it opens nothing."""

    @property
    def invoke_start(self) -> State:
        """The state within a block that the prompt has opened."""


class CallMask:
    """Follows one sequence.

    ``thinking`` says that the sequence begins in reasoning, ``in_block`` that the prompt has opened
    a block. Rules that force have no way around what they force: it must follow the reasoning at
    once.
    """

    def __init__(
        self,
        rules: TurnRules,
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
        elif not thinking and rules.forces:
            self._state = rules.forced_start

    @property
    def is_free(self) -> bool:
        """Whether anything may come; true outside calls."""
        return self._state is None and not (self._reasons and self._rules.forces)

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
        ordinary = self._vocabulary.ordinary(automaton, state)
        named = self._vocabulary.specials
        named = named.intersection(specials) if ordinary.is_allowed else named.difference(specials)
        return TokenMask(ordinary.ids | named, ordinary.is_allowed)

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
            if self._rules.forces:
                self._state = self._rules.forced_start
