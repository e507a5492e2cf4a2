"""The call grammar in the form that vLLM and SGLang hand to xgrammar."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.grammar import CallRules, to_structural_tag
from baleen.protocol.plugins.definitions import chat_choice, chat_definitions
from baleen.protocol.revision import Flavor, Revision
from baleen.protocol.tool_choice import ChoiceMode, read_tool_choice
from baleen.protocol.tools import read_tools

_LOG = logging.getLogger(__name__)


def structural_tag(
    tools: Sequence[Any] | None,
    tool_choice: Any,
    *,
    thinking: bool,
    parallel: bool = True,
    revision: Revision = Revision.R0731,
) -> Any:
    """xgrammar's object for a request; None, and a warning, where its schemas allow no grammar.

    ``thinking`` is False where the server splits off the reasoning before it constrains.
    """
    from xgrammar import StructuralTag  # type: ignore[import-not-found,unused-ignore]

    declared = read_tools(chat_definitions(tools), Flavor.API)
    choice = read_tool_choice(chat_choice(tool_choice), declared)
    if not declared or choice.mode is ChoiceMode.NONE:
        return None
    try:
        export = to_structural_tag(
            CallRules(declared, choice, revision, parallel=parallel), thinking=thinking
        )
    except ToolSchemaError as error:
        _LOG.warning("calls are not constrained: %s", error)
        return None
    if export.unenforced:
        _LOG.warning("the call grammar does not enforce %s", ", ".join(export.unenforced))
    return StructuralTag.model_validate_json(export.text)
