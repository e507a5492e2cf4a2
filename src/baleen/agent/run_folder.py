"""One folder per run, and what its files are called.

::

    runs/
      latest -> the newest run
      20260131T120000Z-which-port-does-staging-use/
        config.json      what was asked, every default filled in
        versions.json    with what it was run
        wal              every token and every command, as it happened (the one truth)
        trajectory.json  the same for people and tools: ATIF
        tokens.json      token ids and log-probabilities by turn
        sandbox.log      the sandbox's own log of its commands
        kv               the model's attention state after the last finished turn
        summary.json     outcome, answer, counters
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from baleen.errors import RunError

LATEST = "latest"
_MAX_SLUG_CHARS = 40


class RunFolder:
    """A folder that holds a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.versions = path / "versions.json"
        self.wal = path / "wal"
        self.trajectory = path / "trajectory.json"
        self.tokens = path / "tokens.json"
        self.kv = path / "kv"
        self.summary = path / "summary.json"

    @classmethod
    def create(cls, path: Path, files: Mapping[str, Any]) -> RunFolder:
        """Make a folder that holds these JSON files from the moment that it can be seen.

        Raises:
            RunError: it exists.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise RunError(f"{path} exists", remedy="name a new folder, or use --resume")
        unfinished = path.with_name(f".new-{os.getpid()}-{path.name}")
        unfinished.mkdir()
        for name, value in files.items():
            write_json(unfinished / name, value)
        try:
            unfinished.rename(path)
        except OSError:  # another process was faster
            shutil.rmtree(unfinished)
            raise RunError(f"{path} exists", remedy="name a new folder, or use --resume") from None
        return cls(path.resolve())

    @classmethod
    def create_under(cls, runs: Path, question: str, files: Mapping[str, Any]) -> RunFolder:
        """Make a folder named after this second and the question, and point `latest` at it."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        for number in range(1, 1_000):
            suffix = "" if number == 1 else f"-{number}"
            with suppress(RunError):
                folder = cls.create(runs / f"{stamp}-{slug(question)}{suffix}", files)
                _point_latest(runs, folder.name)
                return folder
        raise RunError(f"{runs} holds a thousand runs of this second", remedy="use another folder")

    @classmethod
    def find(cls, name: str, runs: Path) -> RunFolder:
        """The folder that a user means: a path, a name under `runs`, or `latest`.

        Raises:
            RunError: there is no such run.
        """
        for path in (Path(name), runs / name):
            if (path / "config.json").is_file():
                return cls(path.resolve())
        raise RunError(f"there is no run {name!r}", remedy=f"name a folder of {runs}/, or 'latest'")

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    def discard(self) -> None:
        """Remove the folder of a run that could not begin, and what points at it."""
        shutil.rmtree(self.path)
        latest = self.path.with_name(LATEST)
        if latest.is_symlink() and latest.readlink() == Path(self.name):
            latest.unlink()

    def sandbox_log(self, number: int) -> Path:
        """Where the log of the run's nth sandbox lies; most runs have one."""
        return self.path / ("sandbox.log" if number == 0 else f"sandbox-{number + 1}.log")


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Replace a file by a JSON text in one step: a reader sees the old one or the new one.

    Without `indent` it is compact and written many times faster, for files of numbers.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", "utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """The value in a file of a run.

    Raises:
        RunError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}", remedy="is this a run folder?") from error


def slug(question: str) -> str:
    """A few words of the question, fit for a file name."""
    words = re.sub(r"[^a-z0-9]+", "-", question.lower()).strip("-")
    return words[:_MAX_SLUG_CHARS].rstrip("-") or "run"


def _point_latest(runs: Path, name: str) -> None:
    link = runs / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.replace(runs / LATEST)
