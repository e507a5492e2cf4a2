"""What each conversation's last prompt was, so that the next one costs what is new in it.

A request carries the whole history. Where its messages begin with those of an earlier request, the
earlier prompt is extended instead of encoding everything again; and the earlier prompt and answer
are what the upstream has computed, so comparing them with the new prompt says how much can be
reused, and if not all, which message broke it.

An entry is found by the last assistant message, which names the answer that the entry got. A
conversation keeps its last two entries; the least recently used ones go when there are too many
tokens in all. Losing one costs time and a report, never correctness.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from baleen.protocol import Prompt
from baleen.protocol.cache_break import find_cache_break
from baleen.protocol.turn import Turn
from baleen.server.requests.ask import Ask

_MAX_ENTRIES: Final = 4_096
_MAX_TOKENS: Final = 32 << 20


@dataclass(slots=True)
class Entry:
    """One answered prompt."""

    key: str
    prompt: Prompt
    messages: Sequence[Any]
    """As the client sent them."""
    options: Mapping[str, Any]
    ids: array[int]
    """Prompt and answer: what the upstream has computed."""
    num_prompt: int
    """How many of the ids are the prompt's."""
    before: str = ""
    """Key of the entry that this one went on from."""
    record: int = -1
    """Of the answer in the trace, if there is one."""


class CacheBreak(NamedTuple):
    """Why a prompt does not go on from the one before it."""

    kind: str
    """effort, tools, system, edited_message, dropped_reasoning or evicted."""
    message: int | None
    """The first message that differs, as the client counts; None for the front of the prompt."""

    def __str__(self) -> str:
        return self.kind if self.message is None else f"{self.kind} at messages[{self.message}]"


class Conversations:
    """The entries of all conversations."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ask: Ask) -> Entry | None:
        """The entry whose answer is the last assistant message of a request."""
        for index in range(len(ask.messages) - 1, -1, -1):
            message = ask.messages[index]
            if isinstance(message, Mapping) and message.get("role") == "assistant":
                entry = self._entries.get(_key_of_message(ask.scope, message, index))
                if entry is not None:
                    self._entries.move_to_end(entry.key)
                return entry
        return None

    def remember(
        self,
        ask: Ask,
        prompt: Prompt,
        ids: array[int],
        num_prompt: int,
        turn: Turn,
        before: Entry | None,
        record: int = -1,
    ) -> None:
        """Keep an answered prompt."""
        first = turn.tool_calls[0].id if turn.tool_calls else None
        key = _key(ask.scope, first, turn.content, len(ask.messages))
        if before is not None and before.before:
            self._drop(before.before)
        self._drop(key)
        follows = before.key if before else ""
        entry = Entry(key, prompt, ask.messages, ask.options, ids, num_prompt, follows, record)
        self._entries[key] = entry
        self._num_tokens += len(ids)
        while len(self._entries) > _MAX_ENTRIES or self._num_tokens > _MAX_TOKENS:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._num_tokens -= len(entry.ids)


def _key_of_message(scope: str, message: Mapping[str, Any], index: int) -> str:
    calls = message.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and calls else None
    first = call.get("id") if isinstance(call, Mapping) else None
    content = message.get("content")
    return _key(scope, first, content if isinstance(content, str) else "", index)


def _key(scope: str, call_id: Any, content: str, index: int) -> str:
    if isinstance(call_id, str):
        return f"{scope}|{call_id}"
    return f"{scope}|{index}|{hashlib.sha256(content.encode('utf-8', 'replace')).hexdigest()}"


def explain_break(
    entry: Entry, ask: Ask, prompt: Prompt, *, was_kept: bool, lost_reasoning: bool
) -> CacheBreak:
    """Name what made a prompt differ from the entry that it was to go on from.

    ``was_kept`` says that the store had the last turn, ``lost_reasoning`` that reasoning is missing
    from the history and nobody has kept it.
    """
    before, after = entry.options, ask.options
    if (before["effort"], before["thinking"]) != (after["effort"], after["thinking"]):
        return CacheBreak("effort", None)
    if before["tools"] and not after["tools"]:
        return CacheBreak("dropped_reasoning", None)
    if (before["tools"], before["tool_choice"]) != (after["tools"], after["tool_choice"]):
        return CacheBreak("tools", None)
    found = find_cache_break(entry.prompt.segments, prompt.segments, prompt.marks)
    if found is not None and found.message < 0:
        return CacheBreak("system", None)
    if found is not None:
        is_assistant = found.kind == "assistant"
        if is_assistant and not ask.shows_tools and ask.thinking:
            return CacheBreak("dropped_reasoning", found.message)
        return CacheBreak("edited_message", found.message)
    answer = len(entry.messages)
    if lost_reasoning:
        return CacheBreak("dropped_reasoning", answer)
    if not ask.shows_tools and ask.thinking:
        return CacheBreak("dropped_reasoning", answer)
    return CacheBreak("edited_message" if was_kept else "evicted", answer)
