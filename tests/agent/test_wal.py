"""The log of a run survives being cut at any byte, and refuses what it cannot have written."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.agent.errors import RunBusyError, WalError
from baleen.agent.wal import MAGIC, Wal, frame, read, scan_bytes

BODIES = [{"kind": "tokens", "ids": [1, 2]}, {"text": "é"}, {"raw": b"\x00" * 40}]


def written(path: Path, bodies: list[dict[str, object]]) -> bytes:
    wal = Wal.create(path)
    for body in bodies:
        wal.append(body)
    wal.sync()
    wal.close()
    return path.read_bytes()


def test_records_come_back_in_order(tmp_path: Path) -> None:
    written(tmp_path / "wal", BODIES)
    assert read(tmp_path / "wal") == BODIES


def test_cut_at_every_byte_keeps_exactly_the_whole_records(tmp_path: Path) -> None:
    data = written(tmp_path / "wal", BODIES)
    ends = [len(MAGIC)]
    for number, body in enumerate(BODIES):
        ends.append(ends[-1] + len(frame(number, body)))
    for length in range(len(data) + 1):
        torn = tmp_path / f"torn{length}"
        torn.write_bytes(data[:length])
        wal, bodies = Wal.open(torn)
        assert bodies == BODIES[: sum(end <= length for end in ends[1:])]
        wal.append({"after": length})
        wal.close()
        assert read(torn) == [*bodies, {"after": length}]


def test_damage_before_whole_records_is_refused_with_its_place(tmp_path: Path) -> None:
    data = bytearray(written(tmp_path / "wal", BODIES))
    data[len(MAGIC) + 20] ^= 1
    (tmp_path / "wal").write_bytes(data)
    with pytest.raises(WalError, match="record 0 at byte 8 is damaged, but record 1"):
        Wal.open(tmp_path / "wal")
    assert (tmp_path / "wal").read_bytes() == data


def test_damage_in_the_last_record_is_a_torn_tail(tmp_path: Path) -> None:
    data = bytearray(written(tmp_path / "wal", BODIES))
    data[-1] ^= 1
    assert scan_bytes(bytes(data), tmp_path / "wal").bodies == BODIES[:-1]


def test_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    path.write_bytes(MAGIC[:-1] + b"\x09")
    with pytest.raises(WalError, match="has version 9, this baleen reads version 1"):
        Wal.open(path)


def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    path.write_text("to be or not to be")
    with pytest.raises(WalError, match="is not the log of a run"):
        Wal.open(path)
    assert path.read_text() == "to be or not to be"


def test_an_open_log_belongs_to_one_process(tmp_path: Path) -> None:
    wal = Wal.create(tmp_path / "wal")
    with pytest.raises(RunBusyError, match="in use by another process"):
        Wal.open(tmp_path / "wal")
    wal.close()
    again, _ = Wal.open(tmp_path / "wal")
    again.close()


def _hold_and_die(path: Path) -> None:
    import os
    import signal

    wal = Wal.create(path)
    wal.append({"last": "words"})
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_record_outlives_the_process_that_appended_it_and_so_does_not_the_lock(
    tmp_path: Path,
) -> None:
    child = multiprocessing.get_context("spawn").Process(
        target=_hold_and_die, args=(tmp_path / "wal",)
    )
    child.start()
    child.join()
    assert child.exitcode == -9
    wal, bodies = Wal.open(tmp_path / "wal")
    wal.close()
    assert bodies == [{"last": "words"}]


@given(st.lists(st.binary(max_size=50), max_size=6), st.binary(max_size=30))
def test_garbage_after_the_records_never_hides_or_invents_one(
    values: list[bytes], garbage: bytes
) -> None:
    bodies = [{"value": value} for value in values]
    data = MAGIC + b"".join(frame(number, body) for number, body in enumerate(bodies))
    assert scan_bytes(data + garbage, Path("wal")).bodies == bodies
