"""How sure a success rate is."""

from __future__ import annotations

import math
from typing import NamedTuple

Z_95 = 1.959964


class Rate(NamedTuple):
    """Successes of trials, with the 95 % Wilson score interval."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        return self.successes / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Source: E. B. Wilson (1927)."""
        n, p, z2 = self.trials, self.value, Z_95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)
