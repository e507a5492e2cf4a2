"""What an answer may look like that has to have a form: a JSON value, or a text of a pattern.

The reasoning before it is free, and nothing comes behind it but the end of the turn. Where there
are tools beside the form, the turn is an answer of that form or a block of calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from baleen.protocol import tokens
from baleen.protocol.errors import MessageError
from baleen.protocol.grammar.automaton import TOKEN, Automaton, State, Symbol
from baleen.protocol.grammar.json_rules import JsonRules
from baleen.protocol.grammar.regex import PatternNotRegular, pattern_symbol
from baleen.protocol.grammar.rules import CallRules
from baleen.protocol.schema import Schema

_EOS: Final[Symbol] = (TOKEN, tokens.EOS)


class AnswerForm(NamedTuple):
    """The form of an answer: one of the two is given."""

    schema: Any = None
    """A JSON schema."""
    pattern: str | None = None
    """A regular expression that the whole answer matches."""


class AnswerRules:
    """The grammar of answers of a form; one object serves any number of sequences.

    Raises:
        MessageError: no answer can have this form, or the pattern is none that can be followed.
    """

    forces = True

    def __init__(self, form: AnswerForm, calls: CallRules | None = None) -> None:
        self._calls = calls
        self._json = calls.json if calls is not None else JsonRules()
        self.answer = self._pattern(form.pattern) if form.schema is None else self._value(form)
        self.automaton = Automaton(self)

    def _value(self, form: AnswerForm) -> Symbol:
        schema = Schema(form.schema)
        if not self._json.admits(schema):
            raise MessageError("no answer conforms to the schema", field="response_format")
        return self._json.value(schema, strings=True)

    @staticmethod
    def _pattern(pattern: str | None) -> Symbol:
        inner = (pattern or "").removeprefix("^")
        if inner.endswith("$") and not inner.endswith("\\$"):
            inner = inner[:-1]
        try:
            return pattern_symbol(f"^(?:{inner})$", quoted=False)
        except PatternNotRegular as error:
            raise MessageError(
                f"the pattern {pattern!r} cannot be followed: {error}",
                field="response_format",
                remedy="use literals, classes, groups, alternatives and repetition only",
            ) from error

    @property
    def forced_start(self) -> State:
        """The state in which a turn leaves its reasoning."""
        start = self.automaton.start([self.answer, _EOS])
        if self._calls is None:
            return start
        return start | self.automaton.start(self._calls.forced_symbols)

    @property
    def block_start(self) -> State | None:
        """Behind a DSML token in the reasoning; None: without tools it opens nothing."""
        return None if self._calls is None else self.automaton.start([("block",)])

    @property
    def invoke_start(self) -> State:
        """The state within a block that the prompt has opened."""
        assert self._calls is not None, "a block that is open has tools"
        return self.automaton.start(self._calls.invoke_symbols)

    def expand(self, symbol: Symbol) -> Iterable[Sequence[Symbol]]:
        """The sequences that a symbol stands for."""
        return (self._calls or self._json).expand(symbol)
