"""The regular part of ECMAScript patterns, as grammar symbols.

Read are literals, escapes, classes, groups, alternatives, and repetition of each. Anchors count at
the ends of a pattern, elsewhere they are refused, as are look-arounds, back-references and word
boundaries: those are not regular, or need an automaton of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from baleen.protocol.grammar.automaton import Automaton, Symbol
from baleen.protocol.grammar.chars import (
    ANY,
    Ranges,
    char_sequences,
    complement,
    counted,
    normalized,
)

_DIGIT: Final[Ranges] = ((0x30, 0x39),)
_WORD: Final[Ranges] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Final[Ranges] = normalized(
    (ord(char), ord(char))
    for char in "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
)
_CLASSES: Final = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_LINE_ENDS: Final[Ranges] = ((0x0A, 0x0A), (0x0D, 0x0D))
"""What a dot does not match; the two separators beyond ASCII pass, as they do in Python."""
_CONTROLS: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_HEX_SIZES: Final = {"x": 2, "u": 4}
_MAX_REPEATS: Final = 10_000
_MAX_DEPTH: Final = 50


class PatternNotRegular(ValueError):
    """A pattern that this module does not read."""


def pattern_symbol(pattern: str, *, quoted: bool) -> Symbol:
    """The strings in which a pattern is found, as one symbol.

    Raises:
        PatternNotRegular: the pattern holds something that is not read here.
    """
    return _Reader(pattern, quoted).whole()


def any_char(*, quoted: bool) -> Symbol:
    """One character of any kind."""
    return ("char", ANY, quoted)


def repeated(symbol: Symbol, least: int, most: int | None) -> Symbol:
    """A symbol so many times; no bound if ``most`` is None."""
    if symbol[0] == "char":
        found = counted(symbol[1], least, most, quoted=symbol[2])
        if found is not None:
            return found
    return ("repeat", symbol, least, most)


def expand_regular(symbol: Symbol) -> list[Sequence[Symbol]] | None:
    """What a symbol of this module stands for, characters aside; None for any other symbol."""
    kind = symbol[0]
    if kind == "sequence":
        return [symbol[1]]
    if kind == "one of":
        return [[option] for option in symbol[1]]
    if kind == "repeat":
        _, inner, least, most = symbol
        found: list[Sequence[Symbol]] = [] if least else [[]]
        if most is None or most > 0:
            rest = repeated(inner, max(least - 1, 0), None if most is None else most - 1)
            found.append([inner, rest])
        return found
    return None


class _PatternRules:
    """The grammar of patterns alone."""

    def expand(self, symbol: Symbol) -> list[Sequence[Symbol]]:
        """The sequences that a symbol stands for."""
        found = expand_regular(symbol)
        return char_sequences(symbol[1], quoted=symbol[2]) if found is None else found


def is_found(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text, in time linear in the text.

    Raises:
        PatternNotRegular: the pattern holds something that is not read here.
    """
    automaton = Automaton(_PatternRules())
    state = automaton.start([pattern_symbol(pattern, quoted=False)])
    for byte in text.encode("utf-8", "replace"):
        state = automaton.after_byte(state, byte)
    return () in state


class _Reader:
    """Reads one pattern, from left to right."""

    def __init__(self, pattern: str, quoted: bool) -> None:
        self._pattern = pattern
        self._quoted = quoted
        self._place = 0
        self._depth = 0

    def whole(self) -> Symbol:
        found = self._alternatives(is_top=True)
        if self._place < len(self._pattern):
            raise PatternNotRegular("unmatched )")
        return found

    def _peek(self) -> str:
        return self._pattern[self._place : self._place + 1]

    def _takes(self, text: str) -> bool:
        if self._pattern.startswith(text, self._place):
            self._place += len(text)
            return True
        return False

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise PatternNotRegular("the pattern breaks off")
        self._place += 1
        return char

    def _alternatives(self, *, is_top: bool = False) -> Symbol:
        options = [self._branch(is_top=is_top)]
        while self._takes("|"):
            options.append(self._branch(is_top=is_top))
        return options[0] if len(options) == 1 else ("one of", tuple(options))

    def _branch(self, *, is_top: bool) -> Symbol:
        anything = repeated(any_char(quoted=self._quoted), 0, None)
        found: list[Symbol] = []
        if is_top and not self._takes("^"):
            found.append(anything)
        ends_open = is_top
        while (char := self._peek()) and char not in "|)":
            if char == "$" and is_top:
                self._place += 1
                if self._peek() not in ("", "|"):
                    raise PatternNotRegular("$ within a pattern")
                ends_open = False
                break
            found.append(self._repeated(self._atom()))
        if ends_open:
            found.append(anything)
        return ("sequence", tuple(found))

    def _atom(self) -> Symbol:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._set(self._class())
        if char == ".":
            return self._set(complement(_LINE_ENDS))
        if char == "\\":
            return self._set(self._escape())
        if char in "^$*+?{":
            raise PatternNotRegular(f"{char} in this place")
        return self._set(((ord(char), ord(char)),))

    def _set(self, ranges: Ranges) -> Symbol:
        if not ranges:
            raise PatternNotRegular("an empty class")
        return ("char", ranges, self._quoted)

    def _group(self) -> Symbol:
        if self._takes("?:") or not self._takes("?"):
            pass
        elif self._takes("<") and self._peek() not in ("=", "!"):
            end = self._pattern.find(">", self._place)
            if end < 0:
                raise PatternNotRegular("a group's name without end")
            self._place = end + 1
        else:
            raise PatternNotRegular("a look-around")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise PatternNotRegular("groups nest too deeply")
        found = self._alternatives()
        self._depth -= 1
        if not self._takes(")"):
            raise PatternNotRegular("a group is not closed")
        return found

    def _repeated(self, symbol: Symbol) -> Symbol:
        least, most = 1, 1
        counts: tuple[int, int | None]
        if self._takes("*"):
            counts = (0, None)
        elif self._takes("+"):
            counts = (1, None)
        elif self._takes("?"):
            counts = (0, 1)
        elif self._takes("{"):
            counts = self._counts()
        else:
            counts = (least, most)
        if counts == (1, 1):
            return symbol
        self._takes("?")  # a lazy repetition matches the same strings
        return repeated(symbol, *counts)

    def _counts(self) -> tuple[int, int | None]:
        end = self._pattern.find("}", self._place)
        low, comma, high = self._pattern[self._place : end].partition(",")
        if end < 0 or not low.isdecimal() or not (high.isdecimal() or not high):
            raise PatternNotRegular("{ without numbers")
        self._place = end + 1
        least = int(low)
        most = (int(high) if high else None) if comma else least
        if max(least, most or 0) > _MAX_REPEATS or (most is not None and most < least):
            raise PatternNotRegular("such a repetition")
        return least, most

    def _escape(self) -> Ranges:
        char = self._next()
        if char.lower() in _CLASSES:
            found = _CLASSES[char.lower()]
            return complement(found) if char.isupper() else found
        code = self._code(char)
        return ((code, code),)

    def _code(self, char: str) -> int:
        """The character that an escape stands for."""
        if char in _CONTROLS:
            return ord(_CONTROLS[char])
        size = _HEX_SIZES.get(char)
        if size is not None:
            digits = self._pattern[self._place : self._place + size]
            self._place += size
            try:
                return int(digits, 16)
            except ValueError:
                raise PatternNotRegular(f"\\{char} without its digits") from None
        if char.isalnum():
            raise PatternNotRegular(f"\\{char}")
        return ord(char)

    def _class(self) -> Ranges:
        is_negated = self._takes("^")
        found: list[tuple[int, int]] = []
        while not self._takes("]"):
            item = self._class_item()
            if self._peek() == "-" and self._pattern[self._place + 1 : self._place + 2] != "]":
                self._place += 1
                until = self._class_item()
                if len(item) != 1 or len(until) != 1 or item[0][0] > until[0][1]:
                    raise PatternNotRegular("such a range in a class")
                item = ((item[0][0], until[0][1]),)
            found += item
        ranges = normalized(found)
        return complement(ranges) if is_negated else ranges

    def _class_item(self) -> Ranges:
        char = self._next()
        if char != "\\":
            return ((ord(char), ord(char)),)
        if self._takes("b"):
            return ((0x08, 0x08),)
        return self._escape()
