"""One sync for many logs: what boxes' logs have appended goes to disk through one file.

A log's bytes are written twice: into the log, where readers find them, and into this journal, a
file allocated ahead of time, where one sync covers every box that waits. After a crash of the edge
the logs are whole, since the kernel has their bytes. After a crash of the host the next edge puts
back from the journal what the logs lack. Two files take turns: when one is full, the logs that it
speaks of are synced, and only then is it written over.

File: a first block with magic, generation and boot id; then frames of MessagePack
``[generation, path, offset, bytes]``. A frame of another generation is the end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

from .blobs import sync_folder
from .errors import TrajectoryError
from .journalfile import JournalFile
from .log import Log, Span

FILE_BYTES = 4 << 20
LARGE_BYTES = 256 << 10
"""A log with more than this to sync is synced by itself: writing it twice would cost more."""

SYNC_LANES = 16
PATIENCE_S = 0.02
FAST_SYNC_S = 0.004
"""Syncs are waited for in the event loop while they take less: what arrives meanwhile makes the
next batch, and the hop to a thread and back would cost as much as a fast disk's sync."""

Done = Callable[[TrajectoryError | None], None]
_log = logging.getLogger("baleen.sandbox.edge")


class Journal:
    """The journal of one edge; every method but ``close`` is called from its event loop."""

    def __init__(
        self,
        folder: Path,
        executor: Executor,
        *,
        file_bytes: int = FILE_BYTES,
        boot: str | None = None,
        direct: bool = True,
    ) -> None:
        self._executor = executor
        self._boot = boot or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._files = [JournalFile(folder / name, file_bytes, direct=direct) for name in ("a", "b")]
        self._cleaning: Future[None] | None = None
        self._waiting: dict[Log, list[Done]] = {}
        self._is_busy = False
        self._is_due = False
        self._later: asyncio.TimerHandle | None = None
        self._sync_time_s = 0.0
        self._load()

    def _load(self) -> None:
        spans = [(file, file.load()) for file in self._files]
        spans.sort(key=lambda item: item[0].generation)
        self._files = [file for file, _ in spans]
        old, new = self._files
        if any(found and file.boot != self._boot for file, found in spans):
            for _, found in spans:
                _restore(found)
        elif new.boot == self._boot:
            self._clean(old)
            return  # go on where the last edge stopped
        _sync_all(old.logs | new.logs)
        old.logs = set()
        new.begin(new.generation + 1, self._boot)
        new.sync()

    def commit(self, log: Log, done: Done, *, patient: bool = False) -> None:
        """Calls back when everything appended to ``log`` so far is on disk, or with the error.

        Who is ``patient`` waits up to :data:`PATIENCE_S` for somebody else's sync to go along with.
        """
        self._waiting.setdefault(log, []).append(done)
        if not patient:
            self._flush_soon()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(PATIENCE_S, self._flush_soon)

    def _flush_soon(self) -> None:
        if not self._is_due and not self._is_busy:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def committed(self, log: Log) -> None:
        """Waits for :meth:`commit`.

        Raises:
            TrajectoryError: the disk refused.
        """
        future: asyncio.Future[TrajectoryError | None] = asyncio.get_running_loop().create_future()
        self.commit(log, lambda error: None if future.done() else future.set_result(error))
        if (error := await future) is not None:
            raise error

    def _flush(self) -> None:
        self._is_due = False
        if self._is_busy or not self._waiting:
            return
        batch = self._take()
        large = [log for log in batch if log.unsynced_bytes > LARGE_BYTES]
        spans = [(log, log.unsynced()) for log in batch if log not in large and log.unsynced_bytes]
        if self._sync_time_s < FAST_SYNC_S and not large:
            self._finish(batch, self._write(spans, large))
            return
        self._is_busy = True
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, self._write, spans, large)

        def written(future: asyncio.Future[dict[Log, TrajectoryError]]) -> None:
            self._is_busy = False
            self._finish(batch, future.result())
            self._flush()

        work.add_done_callback(written)

    def _take(self) -> dict[Log, list[Done]]:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        batch, self._waiting = self._waiting, {}
        return batch

    def _finish(self, batch: dict[Log, list[Done]], failed: dict[Log, TrajectoryError]) -> None:
        for log, callbacks in batch.items():
            for done in callbacks:
                try:
                    done(failed.get(log))
                except Exception:
                    _log.exception("after a sync of %s", log.path)

    def _write(self, spans: list[tuple[Log, Span]], large: list[Log]) -> dict[Log, TrajectoryError]:
        """Puts the logs' news on disk; returns the logs for which that failed."""
        failed: dict[Log, TrajectoryError] = {}
        for log in large:
            try:
                log.sync()
            except TrajectoryError as error:
                failed[log] = error
        started = time.monotonic()
        try:
            for _, span in spans:
                self._put(span)
            self._files[1].sync()
        except OSError as error:
            return failed | {
                log: TrajectoryError(f"cannot sync {log.path}: {error}") for log, _ in spans
            }
        for log, span in spans:
            log.mark_synced(span)
        self._sync_time_s = 0.7 * self._sync_time_s + 0.3 * (time.monotonic() - started)
        return failed

    def _put(self, span: Span) -> None:
        frame = self._files[1].frame(span)
        if not self._files[1].has_room(frame):
            self._switch()
            frame = self._files[1].frame(span)
        self._files[1].add(frame, span.path)

    def _switch(self) -> None:
        """Turns to the other file; waits, rarely, until what it speaks of is synced."""
        clean, full = self._files
        if self._cleaning is not None:
            self._cleaning.result()
        full.sync()
        clean.begin(full.generation + 1, self._boot)
        self._files = [full, clean]
        self._clean(full)

    def _clean(self, file: JournalFile) -> None:
        logs, file.logs = file.logs, set()
        self._cleaning = self._executor.submit(_sync_all, logs) if logs else None

    def close(self) -> None:
        """Syncs every log, so that nothing has to be read here again."""
        batch = self._take()
        waiting = [log for log in batch if log.unsynced_bytes]
        self._finish(batch, self._write([], waiting))
        old, new = self._files
        if self._cleaning is not None:
            self._cleaning.result()
        _sync_all(old.logs | new.logs)
        new.begin(new.generation + 1, self._boot)
        new.sync()
        for file in self._files:
            file.close()


def _restore(spans: list[Span]) -> None:
    """Puts back what the logs lost with the host; writing what they still have changes nothing."""
    for span in spans:
        if not Path(span.path).parent.is_dir():
            continue
        fd = os.open(span.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(fd, span.data, span.offset)
        os.close(fd)


def _sync_all(paths: set[str]) -> None:
    """Syncs logs, many at a time: those that wait together share the file system's own commits."""
    if not paths:
        return
    with ThreadPoolExecutor(min(SYNC_LANES, len(paths)), thread_name_prefix="sync") as lanes:
        list(lanes.map(_sync_one, sorted(paths)))
    for folder in {os.path.dirname(path) for path in paths}:  # noqa: PTH120 - thousands of paths
        if os.path.isdir(folder):  # noqa: PTH112
            sync_folder(Path(folder))


def _sync_one(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # its owner has removed it
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
