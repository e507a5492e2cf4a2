"""Constraints as structural tags, which vLLM and SGLang hand to xgrammar."""

from __future__ import annotations

import json
from typing import Any

from baleen.protocol import tokens
from baleen.protocol.grammar import CallRules, to_structural_tag
from baleen.protocol.revision import Flavor
from baleen.protocol.tool_choice import read_tool_choice
from baleen.protocol.tools import read_tools
from baleen.server.base import Constraint


def structural_tag(constraint: Constraint, revision: str) -> str | None:
    """A constraint as JSON text; None if there is nothing to hold to."""
    if constraint.has_calls:
        rules = rules_for(constraint, revision)
        return to_structural_tag(
            rules, thinking=constraint.thinking, in_block=constraint.in_block
        ).text
    form = constraint.form
    if form is None:
        return None
    found: dict[str, Any] = {"type": "json_schema", "json_schema": form.schema}
    if form.pattern is not None:
        found = {"type": "regex", "pattern": form.pattern}
    if constraint.thinking:
        reasoning = {
            "type": "tag",
            "begin": "",
            "content": {"type": "any_text"},
            "end": tokens.THINK_CLOSE,
        }
        found = {"type": "sequence", "elements": [reasoning, found]}
    return json.dumps({"type": "structural_tag", "format": found}, ensure_ascii=False)


def rules_for(constraint: Constraint, revision: str) -> CallRules:
    """The call grammar of a constraint's tools."""
    tools = read_tools(list(constraint.tools), Flavor.API, str, closes=False)
    choice = read_tool_choice(constraint.choice, tools)
    return CallRules(tools, choice, revision, parallel=constraint.parallel)
