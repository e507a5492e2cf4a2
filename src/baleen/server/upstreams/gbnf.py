"""Constraints in llama.cpp's grammar language.

Without a forced choice the grammar sleeps until the DSML token comes. A forced choice has to hold
from the start, so the whole turn is in the grammar then, its reasoning included. Special tokens
stand there by their ids: by their text they could be spelled with ordinary tokens, which opens
nothing.
"""

from __future__ import annotations

from typing import Any, Final

from baleen.protocol import tokens
from baleen.protocol.grammar import AnswerRules, answer_to_ebnf, to_ebnf
from baleen.protocol.pieces import table_for
from baleen.server.base import Constraint
from baleen.server.upstreams.structural_tag import rules_for

_TOKEN_TRIGGER: Final = 0
"""`COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN` of llama.cpp."""


class Gbnf:
    """Writes constraints for one tokenizer."""

    def __init__(self, tokenizer: Any, revision: str) -> None:
        self._revision = revision
        ids_of = table_for(tokenizer).ids_of
        self._ids = {name: min(ids_of(name)) for name in (tokens.DSML, tokens.THINK_CLOSE)}

    def fields_for(self, constraint: Constraint) -> dict[str, Any]:
        """The fields of a request that hold its output to a constraint.

        A form behind reasoning has none: it is asked for when the reasoning is over.
        """
        if constraint.has_calls:
            return self._calls(constraint)
        form = constraint.form
        if form is None or constraint.thinking:
            return {}
        if form.pattern is not None:
            return {"grammar": answer_to_ebnf(AnswerRules(form))}
        return {"json_schema": form.schema}

    def _calls(self, constraint: Constraint) -> dict[str, Any]:
        rules = rules_for(constraint, self._revision)
        if rules.choice.forces:
            whole = to_ebnf(
                rules, thinking=constraint.thinking, in_block=constraint.in_block, ids=self._ids
            )
            return {"grammar": whole.text}
        calls = to_ebnf(rules, thinking=False, in_block=True, ids=self._ids).text
        dsml = self._ids[tokens.DSML]
        opener = f'<[{dsml}]> "{rules.dialect.block}>\\n"'
        return {
            "grammar": f"root ::= {opener} calls\n{calls.replace('root ::=', 'calls ::=', 1)}",
            "grammar_lazy": True,
            "grammar_triggers": [{"type": _TOKEN_TRIGGER, "value": tokens.DSML, "token": dsml}],
        }
