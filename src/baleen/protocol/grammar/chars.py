"""Sets of characters as grammar symbols, raw or as the inside of a JSON string.

A set is a tuple of code point ranges, ``((first, last), ...)``, sorted and apart. Inside a JSON
string quotes, backslashes and control characters are escaped; other ``\\u`` escapes are for sets
that hold everything, where they cannot say something forbidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from baleen.protocol.grammar.automaton import COUNT, LITERAL, ONE, Symbol

Ranges = tuple[tuple[int, int], ...]

_LAST: Final = 0x10FFFF
ANY: Final[Ranges] = ((0, 0xD7FF), (0xE000, _LAST))
"""Every character; halves of surrogate pairs are none."""

_SHORT: Final = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_NOT_SURROGATE: Final = _HEX - frozenset(b"dD")
_LOW_DIGITS: Final = frozenset(b"01234567")
_STEPS: Final = ((0x80, 1), (0x800, 2), (0x10000, 3), (_LAST + 1, 4))
"""Where each length of UTF-8 ends."""


def normalized(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in order, overlaps joined, surrogates out."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(
        (max(first, low), min(last, high))
        for first, last in joined
        for low, high in ANY
        if max(first, low) <= min(last, high)
    )


def complement(ranges: Ranges) -> Ranges:
    """All other characters."""
    found, position = [], 0
    for first, last in ranges:
        found.append((position, first - 1))
        position = last + 1
    found.append((position, _LAST))
    return normalized(pair for pair in found if pair[0] <= pair[1])


def char_sequences(ranges: Ranges, *, quoted: bool) -> list[Sequence[Symbol]]:
    """The ways to write one character of a set."""
    if not quoted:
        return _as_bytes(ranges)
    special = [ord(char) for char in _SHORT]
    plain = _minus(ranges, [(0, 0x1F), *((code, code) for code in special)])
    found = _as_bytes(plain)
    for char, letter in _SHORT.items():
        if _holds(ranges, ord(char)):
            found.append([(LITERAL, f"\\{letter}".encode())])
    if ranges == ANY:
        return found + _EVERY_ESCAPE
    for code in range(0x20):
        if _holds(ranges, code) and chr(code) not in _SHORT:
            found.append([(LITERAL, f"\\u{code:04x}".encode())])
    return found


_ONE_HEX: Final[Symbol] = (ONE, _HEX)
_EVERY_ESCAPE: Final[list[Sequence[Symbol]]] = [
    [(LITERAL, b"\\/")],
    [(LITERAL, b"\\u"), (ONE, _NOT_SURROGATE), _ONE_HEX, _ONE_HEX, _ONE_HEX],
    [(LITERAL, b"\\u"), (ONE, frozenset(b"dD")), (ONE, _LOW_DIGITS), _ONE_HEX, _ONE_HEX],
]


def counted(ranges: Ranges, least: int, most: int | None, *, quoted: bool) -> Symbol | None:
    """So many characters of a set, as one terminal; None if bytes cannot tell the set.

    Bytes tell it if it holds all characters beyond ASCII, or none. They need not be whole
    characters then: bytes that are none read as replacement characters.
    """
    beyond = _minus(ranges, [(0, 0x7F)])
    if beyond not in ((), _minus(ANY, [(0, 0x7F)])):
        return None
    sequences = char_sequences(_minus(ranges, [(0x80, _LAST)]), quoted=quoted)
    plain = {byte for s in sequences if s[0][0] == ONE for byte in s[0][1]}
    if beyond:
        plain.update(range(0x80, 0x100))
    escapes = char_sequences(ranges, quoted=quoted)
    return (
        COUNT,
        frozenset(plain),
        least,
        most,
        tuple(tuple(s) for s in escapes if s[0][0] == LITERAL),
    )


def _holds(ranges: Ranges, code: int) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _minus(ranges: Ranges, taken: Iterable[tuple[int, int]]) -> Ranges:
    return complement(normalized([*complement(ranges), *taken]))


def _as_bytes(ranges: Ranges) -> list[Sequence[Symbol]]:
    ascii_bytes: set[int] = set()
    found: list[Sequence[Symbol]] = []
    for first, last in ranges:
        low = first
        for end, size in _STEPS:
            if low > last or low >= end:
                continue
            high = min(last, end - 1)
            if size == 1:
                ascii_bytes.update(range(low, high + 1))
            else:
                found += _sequences(chr(low).encode(), chr(high).encode())
            low = high + 1
    return [[(ONE, frozenset(ascii_bytes))], *found] if ascii_bytes else found


def _sequences(low: bytes, high: bytes) -> list[Sequence[Symbol]]:
    """Byte sequences between two of the same length, as products of byte sets."""
    if len(low) == 1:
        return [[_between(low[0], high[0])]]
    if low[0] == high[0]:
        return [[_between(low[0], low[0]), *rest] for rest in _sequences(low[1:], high[1:])]
    found: list[Sequence[Symbol]] = []
    smallest, largest = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
    first, last = low[0], high[0]
    if low[1:] != smallest:
        found += [[_between(first, first), *rest] for rest in _sequences(low[1:], largest)]
        first += 1
    tail: list[Sequence[Symbol]] = []
    if high[1:] != largest:
        tail = [[_between(last, last), *rest] for rest in _sequences(smallest, high[1:])]
        last -= 1
    if first <= last:
        found.append([_between(first, last), *[_between(0x80, 0xBF)] * len(smallest)])
    return found + tail


def _between(first: int, last: int) -> Symbol:
    return (ONE, frozenset(range(first, last + 1)))
