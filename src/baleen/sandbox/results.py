"""Results as a log holds them: long output lies beside it, as a blob."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .blobs import fetch, keep
from .errors import TrajectoryError
from .spec import RunResult
from .trajectory import Record


def kept_result(log: Path, result: RunResult) -> dict[str, Any] | TrajectoryError:
    """The result as the log holds it; the error where the disk does not take its output."""
    try:
        stdout = keep(log, result.stdout)
        stderr = keep(log, result.stderr)
    except TrajectoryError as error:
        return error
    return {**result.to_wire(), "stdout": stdout, "stderr": stderr}


def result_of(path: Path, record: Record) -> RunResult:
    """The result that a RESULT record holds, marked as replayed."""
    data = {name: value for name, value in record.payload.items() if name != "intent"}
    streams = {name: fetch(path, data[name]) for name in ("stdout", "stderr")}
    return RunResult(**{**data, **streams, "replayed": True})
