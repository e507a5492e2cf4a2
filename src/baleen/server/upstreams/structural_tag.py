"""Constraints as xgrammar's structural tags, which vLLM and SGLang take.

A tag sleeps until its trigger, the opener of a block, is written. These engines match text, so the
marker is its spelling there.
"""

from __future__ import annotations

import json
from typing import Any

from baleen.protocol import tokens
from baleen.server.base import Constraint
from baleen.server.upstreams.ebnf import BLOCK, INVOKE, EbnfWriter, quoted, rules_for

_RAW = (
    '[^<] raw | "<" raw1\n'
    'raw1 ::= "<" raw1 | "/" raw2 | [^</] raw\n'
    f'raw2 ::= {quoted(tokens.DSML)} | "<" raw1 | [^<{tokens.DSML[0]}] raw'
)
"""Text up to the first `</` with the marker behind it."""


def structural_tag(constraint: Constraint, revision: str) -> str | None:
    """A constraint as JSON text; None if there is nothing to hold to."""
    found = _calls(constraint, revision) or _json(constraint)
    return (
        None
        if found is None
        else json.dumps({"type": "structural_tag", "format": found}, ensure_ascii=False)
    )


def _calls(constraint: Constraint, revision: str) -> dict[str, Any] | None:
    if not constraint.tools or constraint.choice == "none":
        return None
    writer = EbnfWriter(rules_for(constraint, revision), token=quoted, raw=_RAW)
    if constraint.in_block:
        return _grammar(["root ::= call", *writer.write(INVOKE)])
    tag = {
        "type": "tag",
        "begin": f"<{tokens.DSML}",
        "content": _grammar(["root ::= call", *writer.write(BLOCK)]),
        "end": "",
    }
    if constraint.choice in (None, "auto"):
        return {
            "type": "triggered_tags",
            "triggers": [f"<{tokens.DSML}"],
            "tags": [tag],
            "at_least_one": False,
            "stop_after_first": True,
        }
    forced = {**tag, "begin": f"\n\n<{tokens.DSML}"}
    return _behind_reasoning(forced) if constraint.thinking else forced


def _json(constraint: Constraint) -> dict[str, Any] | None:
    if constraint.json_schema is None:
        return None
    wanted = {"type": "json_schema", "json_schema": constraint.json_schema}
    return _behind_reasoning(wanted) if constraint.thinking else wanted


def _behind_reasoning(wanted: dict[str, Any]) -> dict[str, Any]:
    reasoning = {
        "type": "tag",
        "begin": "",
        "content": {"type": "any_text"},
        "end": tokens.THINK_CLOSE,
    }
    return {"type": "sequence", "elements": [reasoning, wanted]}


def _grammar(lines: list[str]) -> dict[str, Any]:
    return {"type": "grammar", "grammar": "\n".join(lines)}
