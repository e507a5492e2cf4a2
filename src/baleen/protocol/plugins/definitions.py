"""Other servers' tool objects as Chat Completions definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def chat_definitions(tools: Sequence[Any] | None) -> list[dict[str, Any]]:
    """Definitions of function tools; objects with attributes and mappings are both understood."""
    found = []
    for tool in tools or ():
        function = _get(tool, "function") or tool
        name = _get(function, "name")
        if isinstance(name, str):
            parameters = _get(function, "parameters")
            definition = {"name": name, "parameters": parameters}
            found.append({"type": "function", "function": definition})
    return found


def chat_choice(choice: Any) -> Any:
    """A tool choice; objects that name a tool become mappings, words stay."""
    if choice is None or isinstance(choice, str):
        return choice
    return {
        "type": "function",
        "function": {"name": _get(_get(choice, "function") or choice, "name")},
    }


def _get(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
