"""The edge's journal: one sync for many logs, and whole logs after the host has crashed."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from baleen.sandbox import TrajectoryError
from baleen.sandbox.journal import LARGE_BYTES, PATIENCE_S, Journal
from baleen.sandbox.journalfile import JournalFile
from baleen.sandbox.log import Log, Span
from baleen.sandbox.trajectory import Kind, read, verify


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture(params=["past the page cache", "through it"])
def journal_of(
    request: pytest.FixtureRequest,
) -> Callable[..., Journal]:
    """Makes journals that write as the file system allows, and such as fall back."""
    return partial(Journal, direct=request.param != "through it")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal"


def append(log: Log, number: int, size: int = 10) -> None:
    log.append(Kind.INTENT, {"n": number, "text": "x" * size}, f"k{number}", sync=False)


def numbers(path: Path) -> list[int]:
    return [record.payload["n"] for record in read(path)]


async def test_what_was_committed_is_whole_after_the_host_lost_the_logs(
    tmp_path: Path,
    folder: Path,
    executor: Executor,
    journal_of: Callable[..., Journal],
) -> None:
    """Cut to any length, or gone: the next edge after a crash of the host puts the logs back."""
    journal = journal_of(folder, executor, boot="before")
    logs = [Log.create(tmp_path / f"log{n}") for n in range(4)]
    for number in range(5):
        for log in logs:
            append(log, number)
        await asyncio.gather(*(journal.committed(log) for log in logs))
    os.truncate(logs[0].path, 7)
    os.truncate(logs[1].path, 0)
    logs[2].path.unlink()
    size = logs[3].path.stat().st_size
    with logs[3].path.open("r+b") as file:
        file.write(bytes(size))
    journal_of(folder, executor, boot="after")
    for log in logs:
        assert numbers(log.path) == [0, 1, 2, 3, 4]
        assert verify(log.path) == 5


async def test_within_one_boot_the_kernel_has_the_bytes_and_nothing_is_written_back(
    tmp_path: Path,
    folder: Path,
    executor: Executor,
    journal_of: Callable[..., Journal],
) -> None:
    journal = journal_of(folder, executor, boot="same")
    log = Log.create(tmp_path / "log")
    append(log, 0)
    await journal.committed(log)
    log.path.unlink()
    journal_of(folder, executor, boot="same")
    assert not log.path.exists()


async def test_an_edge_goes_on_where_a_killed_one_stopped(
    tmp_path: Path,
    folder: Path,
    executor: Executor,
    journal_of: Callable[..., Journal],
) -> None:
    log = Log.create(tmp_path / "log")
    for number in range(3):  # three edges, none of which closed its journal
        journal = journal_of(folder, executor, boot="same")
        append(log, number)
        await journal.committed(log)
        log = Log.open(log.path)
    os.truncate(log.path, 3)
    journal_of(folder, executor, boot="after")
    assert numbers(log.path) == [0, 1, 2]


async def test_bytes_that_a_killed_edge_had_not_committed_leave_no_hole(
    tmp_path: Path,
    folder: Path,
    executor: Executor,
    journal_of: Callable[..., Journal],
) -> None:
    journal = journal_of(folder, executor, boot="one")
    log = Log.create(tmp_path / "log")
    append(log, 0)
    await journal.committed(log)
    append(log, 1)  # in the file, not on disk
    log = Log.open(log.path)
    journal = journal_of(folder, executor, boot="one")
    append(log, 2)
    await journal.committed(log)
    os.truncate(log.path, 30)
    journal_of(folder, executor, boot="two")
    assert numbers(log.path) == [0, 1, 2]


async def test_a_full_file_is_left_only_when_its_logs_are_on_disk(
    tmp_path: Path,
    folder: Path,
    executor: Executor,
    journal_of: Callable[..., Journal],
) -> None:
    journal = journal_of(folder, executor, file_bytes=4096, boot="one")
    log = Log.create(tmp_path / "log")
    for number in range(200):  # more than ten times both files
        append(log, number, 200)
        await journal.committed(log)
    kept = log.path.read_bytes()
    journal.close()
    again = journal_of(folder, executor, file_bytes=4096, boot="one")
    append(log, 200, 200)
    await again.committed(log)
    os.truncate(log.path, len(kept) + 5)
    journal_of(folder, executor, file_bytes=4096, boot="two")
    assert numbers(log.path) == list(range(201))


async def test_many_waiting_logs_share_one_sync(
    tmp_path: Path,
    folder: Path,
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
    journal_of: Callable[..., Journal],
) -> None:
    journal = journal_of(folder, executor)
    logs = [Log.create(tmp_path / f"log{n}") for n in range(50)]
    for log in logs:
        append(log, 0)
    writes: list[int] = []
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, *rest: (writes.append(fd), real(fd, *rest))[1])
    await asyncio.gather(*(journal.committed(log) for log in logs))
    assert len(writes) == 1
    assert all(log.unsynced_bytes == 0 for log in logs)


async def test_who_is_patient_goes_along_with_the_next_sync(
    tmp_path: Path,
    folder: Path,
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
    journal_of: Callable[..., Journal],
) -> None:
    journal = journal_of(folder, executor)
    ended, busy = (Log.create(tmp_path / name) for name in ("ended", "busy"))
    append(ended, 0)
    told: list[object] = []
    writes: list[int] = []
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, *rest: (writes.append(fd), real(fd, *rest))[1])
    journal.commit(ended, told.append, patient=True)
    await asyncio.sleep(0)
    assert not writes
    append(busy, 0)
    await journal.committed(busy)
    assert len(writes) == 1
    assert told == [None]
    assert ended.unsynced_bytes == 0


async def test_who_is_patient_is_on_disk_soon_also_where_nobody_else_comes(
    tmp_path: Path, folder: Path, executor: Executor, journal_of: Callable[..., Journal]
) -> None:
    journal = journal_of(folder, executor)
    log = Log.create(tmp_path / "log")
    append(log, 0)
    told = asyncio.get_running_loop().create_future()
    journal.commit(log, told.set_result, patient=True)
    assert await asyncio.wait_for(told, 50 * PATIENCE_S) is None
    assert log.unsynced_bytes == 0


async def test_closing_a_journal_syncs_who_is_still_patient(
    tmp_path: Path, folder: Path, executor: Executor, journal_of: Callable[..., Journal]
) -> None:
    journal = journal_of(folder, executor)
    log = Log.create(tmp_path / "log")
    append(log, 0)
    told: list[object] = []
    journal.commit(log, told.append, patient=True)
    journal.close()
    assert told == [None]
    assert log.unsynced_bytes == 0


async def test_a_large_record_is_synced_in_its_own_log(
    tmp_path: Path,
    folder: Path,
    executor: Executor,
    journal_of: Callable[..., Journal],
) -> None:
    journal = journal_of(folder, executor)
    log = Log.create(tmp_path / "log")
    append(log, 0, LARGE_BYTES + 1)
    await journal.committed(log)
    assert log.unsynced_bytes == 0
    assert max(path.stat().st_blocks for path in folder.iterdir()) * 512 <= (4 << 20) + 8192
    assert b"x" * 1000 not in (folder / "a").read_bytes() + (folder / "b").read_bytes()


async def test_a_disk_that_refuses_to_sync_is_an_error_for_everybody_who_waits(
    tmp_path: Path,
    folder: Path,
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
    journal_of: Callable[..., Journal],
) -> None:
    journal = journal_of(folder, executor)
    log = Log.create(tmp_path / "log")
    append(log, 0)

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", refuse)
        outcomes = await asyncio.gather(
            journal.committed(log), journal.committed(log), return_exceptions=True
        )
    assert [type(outcome) for outcome in outcomes] == [TrajectoryError] * 2
    await journal.committed(log)  # the next try covers what failed
    assert log.unsynced_bytes == 0


async def test_records_of_any_length_lie_in_the_journal_as_they_were_added(
    tmp_path: Path, folder: Path, executor: Executor, journal_of: Callable[..., Journal]
) -> None:
    """Frames begin and end anywhere in blocks, a batch may be longer than one write."""
    journal = journal_of(folder, executor, boot="one")
    logs = [Log.create(tmp_path / f"log{n}") for n in range(8)]
    for number, size in enumerate([1, 3500, 4096, 40_000, 7, 0, 200_000]):
        for log in logs:
            append(log, number, size)
        await asyncio.gather(*(journal.committed(log) for log in logs))
    whole = [log.path.read_bytes() for log in logs]
    for log in logs:
        os.truncate(log.path, 0)
    journal_of(folder, executor, boot="two")
    assert [log.path.read_bytes() for log in logs] == whole


def test_a_file_system_without_direct_writes_is_written_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not JournalFile(tmp_path / "a", 4096, direct=False).is_direct
    real = os.pwritev

    def refuse(fd: int, *rest: Any) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(fd, *rest)

    monkeypatch.setattr(os, "pwritev", refuse)
    file = JournalFile(tmp_path / "b", 4096)
    file.begin(1, "boot")
    file.add(file.frame(Span("log", 0, b"data")), "log")
    file.sync()
    assert not file.is_direct
    assert JournalFile(tmp_path / "b", 4096, direct=False).load() == [Span("log", 0, b"data")]
