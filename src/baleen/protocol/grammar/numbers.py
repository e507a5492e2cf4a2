"""JSON numbers between bounds, as grammar symbols.

A bounded number is written without an exponent: then its digits can be compared with the bound's
from left to right. Symbols carry what is left of the bounds; None means that the digits so far
already lie inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from baleen.protocol.grammar.automaton import LITERAL, MANY, ONE, Symbol

_DIGITS: Final = b"0123456789"
_ANY_DIGITS: Final[Symbol] = (MANY, frozenset(_DIGITS))


class Bounds(NamedTuple):
    """An interval; None is no bound."""

    low: Decimal | None = None
    high: Decimal | None = None
    low_is_out: bool = False
    high_is_out: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether no number lies in it."""
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (
            self.low == self.high and (self.low_is_out or self.high_is_out)
        )

    @property
    def negated(self) -> Bounds:
        """The interval of the numbers with the other sign."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return Bounds(low, high, self.high_is_out, self.low_is_out)


def bounds_of(node: Any) -> Bounds:
    """What a schema says about a number's size."""

    def read(key: str) -> Decimal | None:
        value = node.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        found = Decimal(str(value)) if is_number else None
        return found if found is not None and found.is_finite() else None

    low, high = read("minimum"), read("maximum")
    over, under = read("exclusiveMinimum"), read("exclusiveMaximum")
    low_is_out = over is not None and (low is None or over >= low)
    high_is_out = under is not None and (high is None or under <= high)
    return Bounds(
        over if low_is_out else low, under if high_is_out else high, low_is_out, high_is_out
    )


def bounded_number(bounds: Bounds, *, is_integer: bool) -> list[Sequence[Symbol]]:
    """The ways to write a number within bounds."""
    if bounds.is_empty:
        return []
    found: list[Sequence[Symbol]] = []
    zero = Decimal(0)
    if bounds.high is None or bounds.high >= 0:
        low = (
            bounds
            if bounds.low is not None and bounds.low >= 0
            else bounds._replace(low=zero, low_is_out=False)
        )
        found += _positive(low, is_integer)
    if bounds.low is None or bounds.low < 0:
        other = bounds.negated
        if other.low is None or other.low < 0:
            other = other._replace(low=zero, low_is_out=is_integer)
        found += [[(LITERAL, b"-"), *rest] for rest in _positive(other, is_integer)]
    return found


def _positive(bounds: Bounds, is_integer: bool) -> list[Sequence[Symbol]]:
    """Numbers from a lower bound that is not negative."""
    low = bounds.low or Decimal(0)
    first, first_rest = _split(low)
    if is_integer:
        start = first + (1 if first_rest or bounds.low_is_out else 0)
        if bounds.high is None:
            return _integers(start, None)
        last, last_rest = _split(bounds.high)
        return _integers(start, last - (1 if bounds.high_is_out and not last_rest else 0))
    low_edge = (first_rest, bounds.low_is_out)
    if bounds.high is None:
        return [
            *_with_fraction(first, low_edge, None),
            *([*s, ("fraction", None, None)] for s in _integers(first + 1, None)),
        ]
    last, last_rest = _split(bounds.high)
    high_edge = (last_rest, bounds.high_is_out)
    if first == last:
        return _with_fraction(first, low_edge, high_edge)
    return [
        *_with_fraction(first, low_edge, None),
        *([*s, ("fraction", None, None)] for s in _integers(first + 1, last - 1)),
        *_with_fraction(last, None, high_edge),
    ]


def _split(value: Decimal) -> tuple[int, str]:
    """The integer part, and the digits of the fraction without zeros at their end."""
    whole, _, fraction = format(value, "f").partition(".")
    return int(whole), fraction.rstrip("0")


Edge = tuple[str, bool]
"""The digits that are left of a bound, and whether the bound itself is out."""


def _with_fraction(whole: int, low: Edge | None, high: Edge | None) -> list[Sequence[Symbol]]:
    if high == ("", True):
        return []
    return [[(LITERAL, str(whole).encode()), ("fraction", low, high)]]


def expand_number(symbol: Symbol) -> list[Sequence[Symbol]] | None:
    """What a symbol of this module stands for; None for any other symbol."""
    kind = symbol[0]
    if kind == "fraction":
        _, low, high = symbol
        found: list[Sequence[Symbol]] = [[]] if _may_stop(low, high) else []
        return [*found, [(LITERAL, b"."), ("next digit", low, high)]]
    if kind == "more digits":
        _, low, high = symbol
        return [*([[]] if _may_stop(low, high) else []), [("next digit", low, high)]]
    if kind == "next digit":
        return _next_digit(symbol[1], symbol[2])
    if kind == "digits from":
        return _digits_between(symbol[1], symbol[2])
    return None


def _may_stop(low: Edge | None, high: Edge | None) -> bool:
    low_is_met = low is None or (not low[0] and not low[1])
    high_is_met = high is None or bool(high[0]) or not high[1]
    return low_is_met and high_is_met


def _next_digit(low: Edge | None, high: Edge | None) -> list[Sequence[Symbol]]:
    if low is None and high is None:
        return [[(ONE, frozenset(_DIGITS)), _ANY_DIGITS]]
    smallest = int(low[0][:1] or 0) if low is not None else 0
    largest = int(high[0][:1] or 0) if high is not None else 9
    groups: dict[tuple[Edge | None, Edge | None], set[int]] = {}
    for digit in range(smallest, largest + 1):
        low_rest = (low[0][1:], low[1]) if low is not None and digit == smallest else None
        high_rest = (high[0][1:], high[1]) if high is not None and digit == largest else None
        if high_rest == ("", True):
            continue  # every number that begins like this has reached the bound that is out
        groups.setdefault((low_rest, high_rest), set()).add(_DIGITS[digit])
    return [[(ONE, frozenset(s)), ("more digits", *rest)] for rest, s in groups.items()]


def _integers(first: int, last: int | None) -> list[Sequence[Symbol]]:
    """Whole numbers between two that are not negative, by their number of digits."""
    if last is not None and first > last:
        return []
    found: list[Sequence[Symbol]] = []
    for size in range(len(str(first)), len(str(last if last is not None else first)) + 1):
        low = max(first, 10 ** (size - 1) if size > 1 else 0)
        high = 10**size - 1 if last is None else min(last, 10**size - 1)
        found.append([("digits from", str(low), str(high))])
    if last is None:
        longer = [(ONE, frozenset(_DIGITS))] * len(str(first))
        found.append([(ONE, frozenset(b"123456789")), *longer, _ANY_DIGITS])
    return found


def _digits_between(low: str, high: str) -> list[Sequence[Symbol]]:
    """Digit strings between two of the same length."""
    if not low:
        return [[]]
    size = len(low) - 1
    zeros, nines = "0" * size, "9" * size
    first, last = int(low[0]), int(high[0])
    if low[1:] == zeros and high[1:] == nines:
        return [[_digit(first, last), *[_digit(0, 9)] * size]]
    if first == last:
        return [[_digit(first, first), ("digits from", low[1:], high[1:])]]
    found: list[Sequence[Symbol]] = [[_digit(first, first), ("digits from", low[1:], nines)]]
    if first + 1 < last:
        found.append([_digit(first + 1, last - 1), *[_digit(0, 9)] * size])
    return [*found, [_digit(last, last), ("digits from", zeros, high[1:])]]


def _digit(first: int, last: int) -> Symbol:
    return (ONE, frozenset(_DIGITS[first : last + 1]))
