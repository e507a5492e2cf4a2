"""What the bundled checkpoint was trained to do, and what to say when a question is outside it."""

from __future__ import annotations

import re

from baleen.agent.limits import Limits

LIMITS = Limits(max_turns=8, max_tokens=2_048, max_turn_tokens=384, deadline_s=300.0)
"""Its longest right episodes take four turns of about a hundred tokens each."""

ABILITIES = (
    "the bundled checkpoint is small: it looks up a value in mounted files "
    '("Which port does staging use?") and does arithmetic with two whole numbers '
    '("What is 4821 * 37?"); '
    "for anything else give --model URL or --model DIR"
)

_ARITHMETIC = re.compile(
    r"(?<![.\d])\d+\s*(?:[-+*/]|plus|minus|times)\s*-?\d+(?!\.?\d)", re.IGNORECASE
)
"""Training drew no fraction, and the checkpoint misreads it."""
_LOOK_UP = re.compile(
    r"\b(?:which|what)\s\S+\s(?:does|has|is set for)\s"  # Which port does staging use?
    r"|\S+ (?:of|for) \S+[.?]?$"  # What is the port of staging?
    r"|\S+'s \S+",  # What is staging's port?
    re.IGNORECASE,
)


def is_within_reach(question: str) -> bool:
    """Whether a question has the shape of one of the two families."""
    return bool(_ARITHMETIC.search(question) or _LOOK_UP.search(question))
