"""Words and variables of Dockerfiles: quotes, escapes, ``$NAME`` and ``${NAME:-default}``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_NAME = re.compile(r"[A-Za-z_]\w*|\d")


class WordError(ValueError):
    """A word that is not finished, or asks for a variable that must be there."""


def expand(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """Replaces variables, removes quotes and escapes; single quotes keep everything."""
    return "".join(piece for piece, _ in _Scanner(text, variables, escape).pieces())


def expand_text(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """Replaces variables only, as in a here-document."""
    return "".join(piece for piece, _ in _Scanner(text, variables, escape, quotes=False).pieces())


def split(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """The words of a line, expanded; spaces of a variable's value do not divide."""
    words: list[str] = []
    current: list[str] | None = None
    for piece, is_space in _Scanner(text, variables, escape).pieces():
        if is_space:
            if current is not None:
                words.append("".join(current))
            current = None
        else:
            current = [*(current or []), piece]
    if current is not None:
        words.append("".join(current))
    return words


class _Scanner:
    def __init__(
        self, text: str, variables: Mapping[str, str], escape: str, *, quotes: bool = True
    ) -> None:
        self._text = text
        self._variables = variables
        self._escape = escape
        self._quotes = quotes
        self._at = 0

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """(text, whether it is unquoted space); an empty quoted word gives an empty piece."""
        quote = ""
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == quote:
                quote = ""
                self._at += 1
            elif quote == "'":
                yield self._take(), False
            elif not quote and self._quotes and char in "'\"":
                quote = char
                self._at += 1
                yield "", False
            elif char == self._escape:
                yield self._escaped(quote), False
            elif char == "$":
                yield self._variable(), False
            else:
                yield self._take(), not quote and char in " \t"
        if quote:
            raise WordError(f"a quote is not closed in {self._text!r}")

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _escaped(self, quote: str) -> str:
        following = self._text[self._at + 1 : self._at + 2]
        keeps = not self._quotes and following not in ("$", self._escape)
        if keeps or (quote == '"' and following not in ('"', "$", self._escape)):
            return self._take()
        self._at += 2
        return following

    def _variable(self) -> str:
        braced = self._text.startswith("${", self._at)
        found = _NAME.match(self._text, self._at + (2 if braced else 1))
        if found is None:
            if braced:
                raise WordError(f"{self._text!r} has a ${{ without a name")
            return self._take()
        self._at = found.end()
        if not braced:
            return self._variables.get(found[0], "")
        return self._braced(found[0])

    def _braced(self, name: str) -> str:
        end = self._closing()
        rest = self._text[self._at : end]
        self._at = end + 1
        value = self._variables.get(name)
        if not rest:
            return value or ""
        colon = rest.startswith(":")
        operator, word = rest[colon : colon + 1], rest[colon + 1 :]
        is_set = value is not None and (not colon or value != "")
        other = expand(word, self._variables, self._escape)
        if operator == "-":
            return value if is_set and value is not None else other
        if operator == "+":
            return other if is_set else ""
        if operator == "?":
            if is_set and value is not None:
                return value
            raise WordError(f"variable {name} is not set: {other}")
        raise WordError(f"${{{name}{rest}}} is not understood")

    def _closing(self) -> int:
        depth, at = 1, self._at
        while at < len(self._text):
            if self._text[at] == self._escape:
                at += 1
            elif self._text.startswith("${", at):
                depth += 1
            elif self._text[at] == "}":
                depth -= 1
                if not depth:
                    return at
            at += 1
        raise WordError(f"a ${{ is not closed in {self._text!r}")
