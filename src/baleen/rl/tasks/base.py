"""What a task is: a question, the folder it is asked in, the right answer, a model solution."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum


class Family(StrEnum):
    """What a question is about."""

    LOOKUP = "lookup"
    """The value of a key in the one file that mentions a word."""
    ARITHMETIC = "arithmetic"
    """Two integers and an operator."""
    OTHER = "other"
    """Anything else; the right answer says what the checkpoint can do."""


class Split(StrEnum):
    """Which words, keys and number pairs a task may be made of; the sets are disjoint."""

    TRAIN = "train"
    EVAL = "eval"

    def owns(self, text: str) -> bool:
        """Every text belongs to exactly one split: a fifth of all to `EVAL`, by hash."""
        digest = hashlib.sha256(text.encode()).digest()
        return (digest[0] % 5 == 0) == (self is Split.EVAL)


@dataclass(frozen=True)
class Call:
    """One turn that reasons and then runs a command; the output is what the command prints."""

    reasoning: str
    command: str
    output: str


@dataclass(frozen=True)
class Trace:
    """A whole solution: calls, then the turn that answers."""

    calls: tuple[Call, ...]
    reasoning: str
    answer: str


@dataclass(frozen=True)
class Task:
    """One question in one folder."""

    family: Family
    question: str
    answer: str
    solution: Trace
    """What an ideal policy writes; its outputs are simulated, and the preflight checks them."""
    files: dict[str, str] = field(default_factory=dict)
    """Relative path -> content of the folder that the question is asked in."""

    def is_correct(self, answer: str) -> bool:
        return answer.strip() == self.answer
