"""Turns as they were sampled, so that a history re-encodes to the tokens that the model wrote.

Parsing a turn and rendering it again is not the identity: newlines around ``</think>``, the
spelling of a number, compact JSON, clients that drop reasoning. Every such difference changes the
history that the model sees and voids the engine's prefix cache from there on. A store therefore
keeps the token ids of each turn, and the encoder uses them in place of the rendered message if the
message still says the same: equal content, equal calls (arguments equal as JSON), reasoning absent
or equal but for newlines at its edges. Otherwise the client has edited the turn; the edit wins, and
is counted.

A turn is found by the id of any of its calls; a turn without calls by its content and what it
answered. Scopes (one per API key, say) never see each other's turns.

File layout: SQLite, ``user_version`` 1, ``turns(id, payload, size, used)`` with the payload as
JSON, ``keys(scope, key, turn)``. A file of another version is refused. The least recently used
turns are dropped when the payloads exceed ``max_bytes``. Looking a turn up writes nothing: when it
was used is written with the next turn that is remembered, or before turns are dropped.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from baleen.protocol import jsontext, tokens
from baleen.protocol.errors import ReplayError
from baleen.protocol.message import Message, Replay, Role
from baleen.protocol.pieces import table_for
from baleen.protocol.prompt import Prompt
from baleen.protocol.segments import Segment
from baleen.protocol.turn import Turn

FORMAT_VERSION: Final = 1

_TABLES: Final = """
CREATE TABLE turns (id INTEGER PRIMARY KEY, payload TEXT, size INTEGER, used INTEGER);
CREATE TABLE keys (scope TEXT, key TEXT, turn INTEGER, PRIMARY KEY (scope, key));
CREATE INDEX keys_by_turn ON keys (turn);
CREATE INDEX turns_by_use ON turns (used);
"""


class ReplayStore:
    """Keeps turns, in a file or in memory; may be used from several threads.

    ``num_replayed`` and ``num_edited`` count what :meth:`restore` found: turns that were used as
    sampled, and turns that a client had changed.
    """

    def __init__(self, path: str | Path = ":memory:", max_bytes: int = 256 << 20) -> None:
        self.max_bytes = max_bytes
        self.num_replayed = 0
        self.num_edited = 0
        self._used: dict[int, int] = {}
        """When turns were used, as far as it is not written yet."""
        self._lock = threading.Lock()
        self._database = sqlite3.connect(str(path), check_same_thread=False)
        try:
            self._prepare(path)
        except BaseException:
            self._database.close()
            raise

    def _prepare(self, path: str | Path) -> None:
        database = self._database
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT_VERSION):
            raise ReplayError(
                f"{path} has format {version}, this is format {FORMAT_VERSION}",
                remedy="move the file away; it is a cache and will be made again",
            )
        if version == 0:
            database.executescript(_TABLES)
            database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        query = "SELECT COALESCE(SUM(size), 0), COALESCE(MAX(used), 0) FROM turns"
        self._num_bytes, self._clock = database.execute(query).fetchone()

    def close(self) -> None:
        """Close the file; what was remembered is in it."""
        with self._lock:
            with suppress(sqlite3.Error), self._database as database:
                self._write_used(database)
            self._database.close()

    def __enter__(self) -> ReplayStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def num_bytes(self) -> int:
        """The size of all payloads."""
        return int(self._num_bytes)

    # --- remembering ---------------------------------------------------------------------------

    def remember(
        self, prompt: Prompt, ids: Sequence[int], turn: Turn, tokenizer: Any, scope: str = ""
    ) -> None:
        """Keep the answer to a prompt: its ids as sampled, and the turn they were parsed to."""
        if prompt.start is not None or turn.incomplete_calls:
            # The tokens of a turn that the prompt began, or that broke off within a call, cannot
            # stand for the whole message that a client sends back.
            return
        payload = json.dumps(_payload(ids, turn, tokenizer, thinking=prompt.thinking))
        keys = [f"call:{call.id}" for call in turn.tool_calls]
        if not keys:
            keys = [_content_key(_asked(prompt.messages), turn.content)]
        with self._lock, self._database as database:
            self._clock += 1
            row = (payload, len(payload), self._clock)
            insert = "INSERT INTO turns (payload, size, used) VALUES (?, ?, ?)"
            number = database.execute(insert, row).lastrowid
            database.executemany(
                "INSERT OR REPLACE INTO keys VALUES (?, ?, ?)",
                [(scope, key, number) for key in keys],
            )
            self._num_bytes += len(payload)
            self._write_used(database)
            self._evict(database)

    def _write_used(self, database: sqlite3.Connection) -> None:
        used, self._used = self._used, {}
        update = "UPDATE turns SET used = ? WHERE id = ?"
        database.executemany(update, [(clock, number) for number, clock in used.items()])

    def _evict(self, database: sqlite3.Connection) -> None:
        while self._num_bytes > self.max_bytes:
            oldest = database.execute("SELECT id, size FROM turns ORDER BY used LIMIT 1").fetchone()
            if oldest is None:
                return
            database.execute("DELETE FROM keys WHERE turn = ?", (oldest[0],))
            database.execute("DELETE FROM turns WHERE id = ?", (oldest[0],))
            self._num_bytes -= oldest[1]

    # --- restoring -----------------------------------------------------------------------------

    def restore(self, messages: Iterable[Message], scope: str = "") -> list[Message]:
        """The messages, those that were sampled here with their tokens."""
        restored: list[Message] = []
        for message in messages:
            found = self._find(message, restored, scope) if _may_replay(message) else None
            restored.append(message if found is None else replace(message, replay=found))
        return restored

    def _find(self, message: Message, before: Sequence[Message], scope: str) -> Replay | None:
        keys = [f"call:{call.id}" for call in message.calls]
        if not keys:
            keys = [_content_key(_asked(before), message.content)]
        payload = next((p for key in keys if (p := self._look_up(scope, key)) is not None), None)
        if payload is None:
            return None
        kept = json.loads(payload)
        if not _says_the_same(message, kept):
            self.num_edited += 1
            return None
        self.num_replayed += 1
        return Replay(
            reasoning=_segments(kept["reasoning_segments"]),
            rest=_segments(kept["rest_segments"]),
            reasoning_ids=kept["reasoning_ids"],
            rest_ids=kept["rest_ids"],
            is_open_ended=kept["is_open_ended"],
        )

    def _look_up(self, scope: str, key: str) -> str | None:
        query = "SELECT id, payload FROM turns JOIN keys ON turn = id WHERE scope = ? AND key = ?"
        with self._lock:
            row = self._database.execute(query, (scope, key)).fetchone()
            if row is None:
                return None
            self._clock += 1
            self._used[row[0]] = self._clock
            return str(row[1])


def _may_replay(message: Message) -> bool:
    return message.role is Role.ASSISTANT and not (message.is_prefix or message.is_open)


def _asked(messages: Sequence[Message]) -> list[str]:
    """What was said since the last assistant message."""
    said: list[str] = []
    for message in reversed(messages):
        if message.role is Role.ASSISTANT:
            break
        said.append(message.content)
    return said


def _content_key(asked: Sequence[str], content: str) -> str:
    text = json.dumps([*asked, content])
    return f"text:{hashlib.sha256(text.encode()).hexdigest()}"


def _payload(ids: Sequence[int], turn: Turn, tokenizer: Any, *, thinking: bool) -> dict[str, Any]:
    """Ids and their segments, in two parts: up to ``</think>``, and behind it."""
    ids = list(ids)
    table = table_for(tokenizer)
    ends = table.ids_of(tokens.EOS)
    cut = next((place + 1 for place, number in enumerate(ids) if number in ends), None)
    ids = ids[:cut] if cut is not None else [*ids, *list(ends)[:1]]
    closers = table.ids_of(tokens.THINK_CLOSE)
    split = next((place + 1 for place, number in enumerate(ids) if number in closers), None)
    is_open_ended = thinking and split is None
    if not thinking or split is None:
        split = 0
    return {
        "reasoning": turn.reasoning,
        "content": turn.content,
        "calls": [[call.id, call.name, call.arguments] for call in turn.tool_calls],
        "reasoning_ids": ids[:split],
        "rest_ids": ids[split:],
        "reasoning_segments": table.segments_of(ids[:split]),
        "rest_segments": table.segments_of(ids[split:]),
        "is_open_ended": is_open_ended,
    }


def _segments(listed: Sequence[Any]) -> tuple[Segment, ...]:
    return tuple((text, is_special) for text, is_special in listed)


def _says_the_same(message: Message, kept: dict[str, Any]) -> bool:
    if message.content != kept["content"]:
        return False
    if message.reasoning is not None and message.reasoning.strip("\n") != kept["reasoning"].strip(
        "\n"
    ):
        return False
    if len(message.calls) != len(kept["calls"]):
        return False
    return all(
        call.name == name and _equal_json(call.arguments, arguments)
        for call, (_, name, arguments) in zip(message.calls, kept["calls"], strict=True)
    )


def _equal_json(first: str, second: str) -> bool:
    if first == second:
        return True
    try:
        return bool(jsontext.loads_rfc8259(first) == jsontext.loads_rfc8259(second))
    except ValueError:
        return False
