"""The edge's journal: one sync for many logs, and whole logs after the host has crashed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from baleen.sandbox import TrajectoryError
from baleen.sandbox.journal import LARGE_BYTES, Journal
from baleen.sandbox.log import Log
from baleen.sandbox.trajectory import Kind, read, verify


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal"


def append(log: Log, number: int, size: int = 10) -> None:
    log.append(Kind.INTENT, {"n": number, "text": "x" * size}, f"k{number}", sync=False)


def numbers(path: Path) -> list[int]:
    return [record.payload["n"] for record in read(path)]


async def test_what_was_committed_is_whole_after_the_host_lost_the_logs(
    tmp_path: Path, folder: Path, executor: Executor
) -> None:
    """Cut to any length, or gone: the next edge after a crash of the host puts the logs back."""
    journal = Journal(folder, executor, boot="before")
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
    Journal(folder, executor, boot="after")
    for log in logs:
        assert numbers(log.path) == [0, 1, 2, 3, 4]
        assert verify(log.path) == 5


async def test_within_one_boot_the_kernel_has_the_bytes_and_nothing_is_written_back(
    tmp_path: Path, folder: Path, executor: Executor
) -> None:
    journal = Journal(folder, executor, boot="same")
    log = Log.create(tmp_path / "log")
    append(log, 0)
    await journal.committed(log)
    log.path.unlink()
    Journal(folder, executor, boot="same")
    assert not log.path.exists()


async def test_an_edge_goes_on_where_a_killed_one_stopped(
    tmp_path: Path, folder: Path, executor: Executor
) -> None:
    log = Log.create(tmp_path / "log")
    for number in range(3):  # three edges, none of which closed its journal
        journal = Journal(folder, executor, boot="same")
        append(log, number)
        await journal.committed(log)
        log = Log.open(log.path)
    os.truncate(log.path, 3)
    Journal(folder, executor, boot="after")
    assert numbers(log.path) == [0, 1, 2]


async def test_bytes_that_a_killed_edge_had_not_committed_leave_no_hole(
    tmp_path: Path, folder: Path, executor: Executor
) -> None:
    journal = Journal(folder, executor, boot="one")
    log = Log.create(tmp_path / "log")
    append(log, 0)
    await journal.committed(log)
    append(log, 1)  # in the file, not on disk
    log = Log.open(log.path)
    journal = Journal(folder, executor, boot="one")
    append(log, 2)
    await journal.committed(log)
    os.truncate(log.path, 30)
    Journal(folder, executor, boot="two")
    assert numbers(log.path) == [0, 1, 2]


async def test_a_full_file_is_left_only_when_its_logs_are_on_disk(
    tmp_path: Path, folder: Path, executor: Executor
) -> None:
    journal = Journal(folder, executor, file_bytes=4096, boot="one")
    log = Log.create(tmp_path / "log")
    for number in range(200):  # more than ten times both files
        append(log, number, 200)
        await journal.committed(log)
    kept = log.path.read_bytes()
    journal.close()
    again = Journal(folder, executor, file_bytes=4096, boot="one")
    append(log, 200, 200)
    await again.committed(log)
    os.truncate(log.path, len(kept) + 5)
    Journal(folder, executor, file_bytes=4096, boot="two")
    assert numbers(log.path) == list(range(201))


async def test_many_waiting_logs_share_one_sync(
    tmp_path: Path, folder: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, executor)
    logs = [Log.create(tmp_path / f"log{n}") for n in range(50)]
    for log in logs:
        append(log, 0)
    real, syncs = os.fdatasync, []
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append(fd), real(fd))[1])
    await asyncio.gather(*(journal.committed(log) for log in logs))
    assert len(syncs) == 1
    assert all(log.unsynced_bytes == 0 for log in logs)


async def test_a_large_record_is_synced_in_its_own_log(
    tmp_path: Path, folder: Path, executor: Executor
) -> None:
    journal = Journal(folder, executor)
    log = Log.create(tmp_path / "log")
    append(log, 0, LARGE_BYTES + 1)
    await journal.committed(log)
    assert log.unsynced_bytes == 0
    assert max(path.stat().st_blocks for path in folder.iterdir()) * 512 <= (4 << 20) + 8192
    assert b"x" * 1000 not in (folder / "a").read_bytes() + (folder / "b").read_bytes()


async def test_a_disk_that_refuses_to_sync_is_an_error_for_everybody_who_waits(
    tmp_path: Path, folder: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, executor)
    log = Log.create(tmp_path / "log")
    append(log, 0)

    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        outcomes = await asyncio.gather(
            journal.committed(log), journal.committed(log), return_exceptions=True
        )
    assert [type(outcome) for outcome in outcomes] == [TrajectoryError] * 2
    await journal.committed(log)  # the next try covers what failed
    assert log.unsynced_bytes == 0
