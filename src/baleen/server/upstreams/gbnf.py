"""Constraints in llama.cpp's grammar language, which can name token ids.

Without a forced choice the grammar sleeps until the DSML token comes. A forced choice or a JSON
schema has to hold from the start, so the reasoning is part of the grammar: any tokens but the one
that closes it.
"""

from __future__ import annotations

from typing import Any, Final

from baleen.protocol import tokens
from baleen.protocol.pieces import table_for
from baleen.server.base import Constraint
from baleen.server.upstreams.ebnf import (
    BLOCK,
    FORCED,
    INVOKE,
    EbnfWriter,
    json_lines,
    rules_for,
)

_TOKEN_TRIGGER: Final = 0
"""`COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN` of llama.cpp."""


class Gbnf:
    """Writes constraints for one tokenizer."""

    def __init__(self, tokenizer: Any, revision: str) -> None:
        self._table, self._revision = table_for(tokenizer), revision
        self._dsml = min(self._table.ids_of(tokens.DSML))
        self._think_close = min(self._table.ids_of(tokens.THINK_CLOSE))

    def fields_for(self, constraint: Constraint) -> dict[str, Any]:
        """The fields of a request that hold its output to a constraint."""
        if constraint.tools and constraint.choice != "none":
            return self._calls(constraint)
        if constraint.json_schema is None:
            return {}
        lines = json_lines(constraint.json_schema, lambda _: f"<[{self._dsml}]>")
        return {"grammar": "\n".join([f"root ::= {self._reasoning(constraint)}call", *lines])}

    def _reasoning(self, constraint: Constraint) -> str:
        closer = self._think_close
        return f"!<[{closer}]>* <[{closer}]> " if constraint.thinking else ""

    def _calls(self, constraint: Constraint) -> dict[str, Any]:
        rules = rules_for(constraint, self._revision)
        # Any tokens up to the marker; what stands before it is the parser's business. A token may
        # begin with the end of the tag in front, so the first characters are matched as such.
        raw = f"[^{tokens.DSML[0]}]* !<[{self._dsml}]>* <[{self._dsml}]>"
        writer = EbnfWriter(rules, token=lambda _: f"<[{self._dsml}]>", raw=raw)
        if constraint.in_block:
            return {"grammar": "\n".join(["root ::= call", *writer.write(INVOKE)])}
        if constraint.choice in (None, "auto"):
            root = f"root ::= <[{self._dsml}]> call"
            return {
                "grammar": "\n".join([root, *writer.write(BLOCK)]),
                "grammar_lazy": True,
                "grammar_triggers": [
                    {"type": _TOKEN_TRIGGER, "value": tokens.DSML, "token": self._dsml}
                ],
            }
        root = f"root ::= {self._reasoning(constraint)}call"
        return {"grammar": "\n".join([root, *writer.write(FORCED)])}
