"""The call grammar for servers that constrain outputs themselves: as EBNF, as a structural tag.

The EBNF is the dialect that xgrammar and llama.cpp read; a structural tag is the JSON that vLLM and
SGLang hand to xgrammar. Both see text and not tokens, so a value cannot even spell the DSML token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from baleen.protocol import tokens
from baleen.protocol.grammar.answer_rules import AnswerRules
from baleen.protocol.grammar.automaton import (
    COUNT,
    LITERAL,
    MANY,
    ONE,
    RAW,
    TOKEN,
    Symbol,
)
from baleen.protocol.grammar.chars import Ranges
from baleen.protocol.grammar.json_rules import literal
from baleen.protocol.grammar.rules import CallRules

_MAX_RULES: Final = 1500
"""Any order of n parameters takes 2 to the n rules."""
_NEVER_IN_VALUES: Final = (tokens.DSML, tokens.EOS)
_NEVER_IN_PROSE: Final = (tokens.DSML, tokens.EOS, tokens.THINK_OPEN, tokens.THINK_CLOSE)
_DSML: Final[Symbol] = (TOKEN, tokens.DSML)


class Export(NamedTuple):
    """A grammar as text, and in what it differs from the masks."""

    text: str
    in_declared_order: bool
    """Parameters and members come in the order of their declaration: any order took too much."""
    unenforced: tuple[str, ...]
    """What the tools' schemas demand and the grammar does not follow."""


def to_ebnf(
    rules: CallRules,
    *,
    thinking: bool,
    in_block: bool = False,
    ids: Mapping[str, int] | None = None,
) -> Export:
    """A whole turn as EBNF, the end-of-sentence token left out.

    ``thinking`` says that the output begins in reasoning, ``in_block`` that the prompt has opened
    the block of calls. Special tokens with ``ids`` are asked for as llama.cpp does it, ``<[id]>``:
    where only their text is, a sampler may spell it with ordinary tokens.
    """
    write = partial(_whole_turn, thinking=thinking, in_block=in_block, ids=ids or {})
    return _exported(rules, write)


def to_structural_tag(rules: CallRules, *, thinking: bool, in_block: bool = False) -> Export:
    """A whole turn as a structural tag, in JSON; parameters as for :func:`to_ebnf`.

    Where a server splits off the reasoning before it constrains, ``thinking`` is False.
    """
    return _exported(rules, partial(_tag_of_turn, thinking=thinking, in_block=in_block))


def answer_to_ebnf(rules: AnswerRules) -> str:
    """An answer of some form as EBNF, without reasoning in front of it."""
    writer = _Writer(rules, has_end=True)
    return writer.finish(writer.sequence([rules.answer]))


def _exported(rules: CallRules, write: Callable[[CallRules], str]) -> Export:
    try:
        return Export(write(rules), False, rules.unenforced)
    except _TooManyRules:
        text = write(rules.in_declared_order())
        return Export(text, True, rules.unenforced)


class _TooManyRules(Exception):
    """The grammar has grown beyond what a server compiles in good time."""


def _whole_turn(rules: CallRules, *, thinking: bool, in_block: bool, ids: Mapping[str, int]) -> str:
    writer = _Writer(rules, has_end=True, ids=ids)
    block: list[Symbol] = [literal("<"), _DSML, ("block",)]
    if in_block:
        text = writer.sequence(rules.invoke_symbols)
    elif rules.choice.forces:
        text = f'"\\n\\n" {writer.sequence(block)}'
    else:
        text = f"{writer.avoiding(_NEVER_IN_PROSE)} ({writer.sequence(block)})?"
    if thinking and not in_block:
        closer = writer.token(tokens.THINK_CLOSE)
        text = f"{writer.avoiding(_NEVER_IN_PROSE)} {closer} {text}"
    return writer.finish(text)


def _tag_of_turn(rules: CallRules, *, thinking: bool, in_block: bool) -> str:
    writer = _Writer(rules, has_end=False)
    block = rules.dialect.block
    closer = f"</{tokens.DSML}{block}>"
    calls = {"type": "grammar", "grammar": writer.finish(writer.sequence(rules.invoke_symbols))}
    opener = f"<{tokens.DSML}{block}>\n"
    found: dict[str, Any]
    prose = [tokens.THINK_OPEN, tokens.THINK_CLOSE]
    if in_block or rules.choice.forces:
        begin = "" if in_block else f"\n\n{opener}"
        found = {"type": "tag", "begin": begin, "content": calls, "end": closer}
    else:
        tag = {"type": "tag", "begin": opener, "content": calls, "end": closer}
        found = {"type": "triggered_tags", "triggers": [f"<{tokens.DSML}"], "tags": [tag]}
        found |= {"excludes": prose, "stop_after_first": True}
    if thinking and not in_block:
        reasoning = {"type": "any_text", "excludes": prose}
        end = tokens.THINK_CLOSE
        thought = {"type": "tag", "begin": "", "content": reasoning, "end": end}
        found = {"type": "sequence", "elements": [thought, found]}
    return json.dumps({"type": "structural_tag", "format": found}, ensure_ascii=False)


class _Writer:
    """Writes the rules that a start symbol needs; ``has_end`` writes the block's closer too."""

    def __init__(
        self,
        rules: CallRules | AnswerRules,
        *,
        has_end: bool,
        ids: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._rules, self._ids = rules, ids
        self._has_end = has_end
        self._names: dict[Any, str] = {}
        self._lines: dict[str, str] = {}
        self._todo: list[tuple[str, Symbol]] = []

    def finish(self, root: str) -> str:
        """All rules, the root first."""
        while self._todo:
            name, symbol = self._todo.pop()
            options = (self.sequence(option) for option in self._expand(symbol))
            self._lines[name] = " | ".join(options)
        lines = [f"root ::= {root}", *(f"{name} ::= {text}" for name, text in self._lines.items())]
        return "\n".join(lines) + "\n"

    def _expand(self, symbol: Symbol) -> Iterable[Sequence[Symbol]]:
        rules = self._rules
        if symbol[0] == "after invoke" and isinstance(rules, CallRules) and not self._has_end:
            return [[], *([rules.invoke_symbols] if rules.parallel else [])]
        return rules.expand(symbol)

    def sequence(self, symbols: Sequence[Symbol]) -> str:
        """Symbols behind each other."""
        parts = [part for symbol in symbols if (part := self._symbol(symbol))]
        return " ".join(parts) or '""'

    def _symbol(self, symbol: Symbol) -> str:
        kind = symbol[0]
        if kind == LITERAL:
            return _quoted(symbol[1].decode())
        if kind == TOKEN:
            return "" if symbol[1] == tokens.EOS else self.token(symbol[1])
        if kind in (ONE, MANY):
            return _class_of_bytes(symbol[1]) + ("*" if kind == MANY else "")
        if kind == COUNT:
            return self._count(symbol)
        if kind == RAW:
            return f'{self.avoiding(_NEVER_IN_VALUES)} "</" {self.token(symbol[1])}'
        if kind == "spaces":
            return f"[ \\n]{{0,{symbol[1]}}}"
        if kind == "repeat":
            return f"({self.sequence([symbol[1]])}){_times(symbol[2], symbol[3])}"
        if kind == "char" and not symbol[2]:
            return _class_of(symbol[1])
        return self._name_of(symbol)

    def token(self, spelling: str) -> str:
        """A special token: by its id where that is known, else by its text."""
        number = self._ids.get(spelling)
        return _quoted(spelling) if number is None else f"<[{number}]>"

    def _count(self, symbol: Symbol) -> str:
        _, allowed, least, most, escapes = symbol
        options = [_class_of_bytes(allowed), *(self.sequence(escape) for escape in escapes)]
        one = options[0] if len(options) == 1 else f"({' | '.join(options)})"
        return one + _times(least, most)

    def _name_of(self, symbol: Any) -> str:
        name = self._names.get(symbol)
        if name is None:
            if len(self._names) >= _MAX_RULES:
                raise _TooManyRules
            name = self._names[symbol] = f"r{len(self._names)}"
            if symbol[0] != "avoiding":
                self._todo.append((name, symbol))
        return name

    def avoiding(self, words: tuple[str, ...]) -> str:
        """The name of a rule for any text in which none of these words stands."""
        known = ("avoiding", words, "") in self._names
        start = self._name_of(("avoiding", words, ""))
        if not known:
            for read in sorted({word[:n] for word in words for n in range(len(word))}):
                name = self._name_of(("avoiding", words, read))
                self._lines[name] = self._after(words, read)
        return start

    def _after(self, words: tuple[str, ...], read: str) -> str:
        """What may follow when this much of a word has been read."""
        letters = sorted({word[n] for word in words for n in range(len(word))})
        options = ['""']
        others = list(letters)
        for letter in letters:
            rest = _longest_end(read + letter, words)
            if rest in words:
                continue
            if rest:
                name = self._name_of(("avoiding", words, rest))
                options.append(f"{_quoted(letter)} {name}")
            else:
                others.remove(letter)
        taken = [letter for letter in letters if letter in others]
        start = self._name_of(("avoiding", words, ""))
        return " | ".join([*options, f"[^{''.join(map(_in_class, taken))}] {start}"])


def _longest_end(text: str, words: tuple[str, ...]) -> str:
    """The longest end of a text that begins a word."""
    ends = (text[n:] for n in range(len(text) + 1))
    return next(end for end in ends if any(word.startswith(end) for word in words))


def _times(least: int, most: int | None) -> str:
    if most is None:
        return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
    return f"{{{least},{most}}}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _class_of_bytes(allowed: frozenset[int]) -> str:
    """A class of the characters whose bytes these are; beyond ASCII it is all or none."""
    codes = sorted(byte for byte in allowed if byte < 0x80)
    ranges = [(code, code) for code in codes]
    if any(byte >= 0x80 for byte in allowed):
        ranges.append((0x80, 0x10FFFF))
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        if joined and first == joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return _class_of(tuple(joined))


def _class_of(ranges: Ranges) -> str:
    parts = [
        _in_class(chr(first)) + ("" if first == last else f"-{_in_class(chr(last))}")
        for first, last in ranges
    ]
    return f"[{''.join(parts)}]"


def _in_class(char: str) -> str:
    code = ord(char)
    if char.isascii() and char.isalnum():
        return char
    # Not \\x: xgrammar reads any number of hexadecimal digits behind that.
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
