"""The reasoning of an answer: counted as it comes, closed from outside where it has to end."""

from __future__ import annotations

from collections.abc import Sequence

from baleen.server.answers.loops import LoopDetector
from baleen.server.answers.thinking_budget import ThinkingBudget
from baleen.server.vocabulary import Vocabulary


class Reasoning:
    """Watches one answer's reasoning, up to the token that closes it."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        is_open: bool,
        budgets: Sequence[int | None],
        loop_closes: bool,
    ) -> None:
        self.is_open = is_open
        """The next token belongs to it."""
        self.num_tokens = 0
        self.is_circling = False
        """It has repeated itself for long."""
        self.closed_by: str | None = None
        """What closed it, if not the model: budget or loop."""
        self._vocabulary, self._loop_closes = vocabulary, loop_closes
        limits = [limit for limit in budgets if limit is not None]
        self._budget = ThinkingBudget(min(limits)) if limits else None
        self._loops = LoopDetector()

    def watch(self, ids: Sequence[int]) -> int | None:
        """Counts new tokens; behind how many of them it has to be closed, None if it has not."""
        vocabulary = self._vocabulary
        for place, number in enumerate(ids, 1):
            if number == vocabulary.think_close or number == vocabulary.dsml:
                self.is_open = False
                return None
            if number == vocabulary.eos:
                return None
            self.num_tokens += 1
            if self._must_close(number):
                self.is_open = False
                return place
        return None

    def _must_close(self, number: int) -> bool:
        """Takes one more token of it."""
        if self._loops.feed(number):
            self.is_circling = True
            if self._loop_closes:
                self.closed_by = "loop"
        budget = self._budget
        if budget is not None and budget.is_spent(
            self.num_tokens, self._vocabulary.bytes_of(number)
        ):
            self.closed_by = "budget"
        return self.closed_by is not None

    def resume(self, ids: Sequence[int]) -> None:
        """Counts tokens that were recorded; they were watched when they came."""
        if not self.is_open:
            return
        vocabulary = self._vocabulary
        closers = (vocabulary.think_close, vocabulary.dsml, vocabulary.eos)
        end = next((place for place, number in enumerate(ids) if number in closers), None)
        self.num_tokens = len(ids) if end is None else end
        self.is_open = end is None
