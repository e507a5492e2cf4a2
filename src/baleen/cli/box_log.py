"""``baleen sandbox logs``: a box's trajectory on the shell, also while it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from baleen.errors import UsageError
from baleen.sandbox.home import Home
from baleen.sandbox.trajectory import Kind, Record, read

FOLLOW_EVERY_S = 0.2


def print_log(box_or_file: str, *, as_json: bool, follow: bool) -> None:
    """Prints a record a line; with ``follow`` until the box has ended."""
    path = Path(box_or_file)
    if not path.is_file():
        path = _log_of(box_or_file)
    for record in _followed(path) if follow else read(path):
        click.echo(json.dumps(_as_data(record)) if as_json else _as_line(record))


def _log_of(box: str) -> Path:
    if (log := Home.default().log_of(box)) is None:
        raise UsageError(f"no box {box!r} is known", remedy="see `baleen sandbox ps`")
    return log


def _followed(path: Path) -> Iterator[Record]:
    """The records as they come, up to the box's last."""
    seen = -1
    kind = None
    while True:
        for record in read(path):
            if record.seq > seen:
                seen, kind = record.seq, record.kind
                yield record
        if kind is Kind.CLOSE:
            return
        time.sleep(FOLLOW_EVERY_S)


def _as_data(record: Record) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    data: dict[str, Any] = plain(record._asdict())
    return data


def _as_line(record: Record) -> str:
    at = datetime.fromtimestamp(record.wall_ns / 1e9, UTC).strftime("%H:%M:%S.%f")[:-3]
    about = ""
    if record.kind == "intent":
        about = " ".join(map(str, record.payload["job"]["argv"]))
    elif record.kind == "result":
        about = (
            f"exit {record.payload['exit_code']} after {record.payload['duration_s'] * 1000:.1f} ms"
        )
    elif "cause" in record.payload:
        about = record.payload["cause"]
    return f"{record.seq:5} {at} {record.kind:10} {about[:120]}"
