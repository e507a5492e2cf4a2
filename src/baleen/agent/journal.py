"""The log of a run and the state that follows from it, kept in step."""

from __future__ import annotations

from pathlib import Path

from baleen.agent import records
from baleen.agent.history import History
from baleen.agent.run_folder import RunFolder
from baleen.agent.wal import Wal, read


class Journal:
    """Writes a record, then lets it change the history: never the other way round."""

    def __init__(self, wal: Wal, history: History) -> None:
        self.history = history
        self._wal = wal

    @classmethod
    def create(cls, path: Path, start: records.Start) -> Journal:
        """Begin the log of a new run."""
        journal = cls(Wal.create(path), History())
        journal.write(start, durable=True)
        return journal

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Take over a run: rebuild its state. The caller decides whether to write `Resumed`."""
        wal, bodies = Wal.open(path)
        history = History()
        try:
            for body in bodies:
                history.apply(records.from_fields(body))
        except BaseException:
            wal.close()
            raise
        return cls(wal, history)

    @property
    def folder(self) -> RunFolder:
        """Where the run lies."""
        return RunFolder(self._wal.path.parent)

    def write(self, record: records.Record, *, durable: bool = False) -> None:
        """Append a record; `durable` returns only when it would survive a power cut.

        Durable is asked for before anything outside this process acts on the record.
        """
        self._wal.append(records.to_fields(record))
        if durable:
            self._wal.sync()
        self.history.apply(record)

    def close(self) -> None:
        """Let another process take the run."""
        self._wal.close()


def read_history(path: Path) -> History:
    """The state of a run as of now, without taking it over."""
    history = History()
    for body in read(path):
        history.apply(records.from_fields(body))
    return history
