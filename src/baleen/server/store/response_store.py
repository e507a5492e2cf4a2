"""Conversations that Responses clients go on with by id alone.

A stored response is the list of items up to and including its output, so `previous_response_id` is
answered by putting them in front of the new input. SQLite file, ``user_version`` 1, one table
``responses(scope, id, items, size, used)``; the least recently used go beyond ``max_bytes``.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from baleen.server.errors import ServerError

FORMAT_VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE responses (scope TEXT, id TEXT, items TEXT, size INTEGER, used REAL,
                        PRIMARY KEY (scope, id));
CREATE INDEX responses_by_use ON responses (used);
"""
_SIZE_INDEX: Final = "CREATE INDEX IF NOT EXISTS responses_by_size ON responses (size)"
"""Sums sizes without reading past the items; files of earlier releases get it when opened."""


class ResponseStore:
    """Keeps the items of responses, in a file or in memory."""

    def __init__(self, path: str | Path, max_bytes: int = 1 << 30) -> None:
        self._max_bytes = max_bytes
        self._database = database = sqlite3.connect(str(path), check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                database.executescript(_TABLES)
                database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            elif version != FORMAT_VERSION:
                raise ServerError(
                    f"{path} has format {version}, this is format {FORMAT_VERSION}",
                    remedy="move the file away; clients then have to send whole conversations",
                )
            database.execute(_SIZE_INDEX)
        except BaseException:
            database.close()
            raise

    def put(self, scope: str, response_id: str, items: Sequence[Any]) -> None:
        """Keep the items of a response.

        Raises:
            sqlite3.Error: they cannot be written.
        """
        text = json.dumps(items)
        row = (scope, response_id, text, len(text), time.time())
        with self._database as database:
            database.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?)", row)
            (total,) = database.execute("SELECT SUM(size) FROM responses").fetchone()
            while total > self._max_bytes:
                oldest = database.execute(
                    "SELECT rowid, size FROM responses ORDER BY used LIMIT 1"
                ).fetchone()
                database.execute("DELETE FROM responses WHERE rowid = ?", (oldest[0],))
                total -= oldest[1]

    def get(self, scope: str, response_id: str) -> list[Any] | None:
        """The items of a response; None if it is not kept."""
        with self._database as database:
            query = "SELECT items FROM responses WHERE scope = ? AND id = ?"
            row = database.execute(query, (scope, response_id)).fetchone()
            if row is None:
                return None
            update = "UPDATE responses SET used = ? WHERE scope = ? AND id = ?"
            database.execute(update, (time.time(), scope, response_id))
        items: list[Any] = json.loads(row[0])
        return items

    def close(self) -> None:
        """Close the file."""
        self._database.close()
