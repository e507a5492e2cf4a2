"""What the log of a box that is gone still knows of a command."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InDoubtError
from .results import result_of
from .spec import RunResult
from .trajectory import Kind, Record, read


def recall(log: str | os.PathLike[str], key: str) -> RunResult | None:
    """The recorded result of the command that ran under this key; None if it never began.

    A living box answers the same question itself: ask it by running the command under its key.

    Raises:
        InDoubtError: the command was begun and has no result: it may or may not have run.
        TrajectoryError: the log is missing or damaged.
    """
    path = Path(log)
    begun: Record | None = None
    for record in read(path):
        if record.kind is Kind.INTENT and record.key == key:
            begun = record
        elif begun is not None and record.payload.get("intent") == begun.seq:
            if record.kind is Kind.INFRA_FAIL:  # it could not be started after all
                begun = None
            elif record.kind is Kind.RESULT:
                return result_of(path, record)
    if begun is not None:
        raise InDoubtError(
            f"{path} holds no result of the command {key!r} (it may or may not have finished)",
            remedy="look at what it changes before you run it again under another key",
        )
    return None
