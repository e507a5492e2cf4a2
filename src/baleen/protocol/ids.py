"""Tool-call ids.

``call_{index:02d}_`` and 24 random characters, 32 in all: sorted as text they stand in the order
of the calls, so that encoders which sort calls by id change nothing. ``ET_`` behind the index says
that the turn had no reasoning; the API lets a history leave reasoning out only for such ids.
"""

from __future__ import annotations

import secrets
import string
from typing import Final

_ALPHANUMERIC: Final = string.ascii_letters + string.digits


def mint_call_id(index: int, *, without_reasoning: bool) -> str:
    """A fresh id for the call at ``index`` of a turn; about 132 random bits."""
    letters = "".join(secrets.choice(_ALPHANUMERIC) for _ in range(20))
    digits = f"{secrets.randbelow(10_000):04d}"
    return f"call_{index:02d}_{'ET_' if without_reasoning else ''}{letters}{digits}"
