"""The store of exact turns, seen from one request: what it gave back, and what it missed."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from baleen.protocol.message import Message, Role
from baleen.protocol.replay import ReplayStore

_MARK_WITHOUT_REASONING = "ET_"
"""In the id of a call whose turn had no reasoning to send back."""


class Restoring:
    """Restores the messages of one request and counts; pass it to the encoder as ``restore``."""

    def __init__(self, store: ReplayStore, scope: str, *, thinking: bool) -> None:
        self._store, self._scope, self._thinking = store, scope, thinking
        self.num_replayed = 0
        self.num_edited = 0
        self.num_reasoning_restored = 0
        self.missing: list[int] = []
        """Messages whose reasoning is neither sent nor kept."""
        self.failed = False

    def __call__(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages, those that were sampled here with their tokens."""
        edited_before = self._store.num_edited
        try:
            restored = self._store.restore(messages, self._scope)
        except sqlite3.Error:
            self.failed = True
            return messages
        self.num_edited += self._store.num_edited - edited_before
        for before, after in zip(messages, restored, strict=True):
            if before.role is Role.ASSISTANT:
                self._count(before, after)
        return restored

    def _count(self, before: Message, after: Message) -> None:
        if after.replay is not None:
            self.num_replayed += 1
            # The marker that closes the reasoning is one of its segments.
            self.num_reasoning_restored += (
                before.reasoning is None and len(after.replay.reasoning) > 1
            )
        elif self._thinking and before.calls and before.reasoning is None:
            had_none = _MARK_WITHOUT_REASONING in before.calls[0].id
            self.missing += [] if had_none else [before.index]
