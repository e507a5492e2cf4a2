"""What two sequences of token ids have in common at their beginning."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


def num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning; arrays are compared fastest."""
    if type(first) is not type(second):
        first, second = array("I", first), array("I", second)
    low, high = 0, min(len(first), len(second))
    if (first if len(first) == high else first[:high]) == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
