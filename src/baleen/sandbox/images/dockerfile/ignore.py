"""``.dockerignore``, and the patterns that COPY understands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=1024)
def pattern(text: str) -> re.Pattern[str]:
    """A pattern of path names: ``*`` and ``?`` stay in a folder, ``**`` does not."""
    out = ""
    at = 0
    while at < len(text):
        char = text[at]
        if text.startswith("**/", at):
            out += "(?:.*/)?"
            at += 3
            continue
        if text.startswith("**", at):
            out += ".*"
            at += 2
            continue
        if char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[" and (end := text.find("]", at + 2)) > 0:
            inner = text[at + 1 : end].replace("\\", "\\\\")
            out += f"[{inner}]" if not inner.startswith("!") else f"[^{inner[1:]}]"
            at = end
        elif char == "\\" and at + 1 < len(text):
            at += 1
            out += re.escape(text[at])
        else:
            out += re.escape(char)
        at += 1
    return re.compile(out, re.DOTALL)


def has_wildcard(text: str) -> bool:
    return any(char in text for char in "*?[")


class Ignore:
    """What stays out of a build's context; the last pattern that fits decides."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for line in lines:
            text = line.strip()
            if not text or line.startswith("#"):
                continue
            keeps = text.startswith("!")
            clean = "/".join(x for x in text.lstrip("!").split("/") if x not in ("", "."))
            if clean:
                self._rules.append((keeps, pattern(clean)))

    @property
    def has_exceptions(self) -> bool:
        return any(keeps for keeps, _ in self._rules)

    def hides(self, path: str) -> bool:
        """Whether a path, relative to the context, stays out; a folder takes its content along."""
        hidden = False
        parts = path.split("/")
        prefixes = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        for keeps, rule in self._rules:
            if hidden == keeps and any(rule.fullmatch(prefix) for prefix in prefixes):
                hidden = not keeps
        return hidden
