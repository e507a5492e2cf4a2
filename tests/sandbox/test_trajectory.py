"""The log's format: chained, checked, cut where it is torn, refused where it is damaged."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen.sandbox.blobs import INLINE_BYTES, blob_folder, fetch, keep
from baleen.sandbox.errors import TrajectoryError
from baleen.sandbox.log import Log
from baleen.sandbox.trajectory import MAGIC, Kind, read, scan, segments, verify

PAYLOADS = st.dictionaries(
    st.text(max_size=8), st.one_of(st.integers(0, 2**40), st.binary(max_size=200)), max_size=4
)


def written(path: Path, count: int) -> Log:
    log = Log.create(path)
    for n in range(count):
        log.append(Kind.INTENT, {"n": n, "text": "x" * n}, f"key-{n}", sync=False)
    log.sync()
    return log


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    entries=st.lists(
        st.tuples(st.sampled_from(list(Kind)), PAYLOADS, st.none() | st.text(max_size=20))
    )
)
def test_what_is_appended_is_read_back_in_order(
    tmp_path: Path, entries: list[tuple[Kind, dict[str, object], str | None]]
) -> None:
    path = tmp_path / os.urandom(4).hex()
    log = Log.create(path)
    for index, (kind, payload, key) in enumerate(entries):
        record = log.append(kind, payload, key, sync=False)
        assert record.seq == index
        assert log.read_at(record.offset)[:4] == (index, kind, key, payload)
    log.close()
    assert [(r.kind, r.payload, r.key) for r in read(path)] == entries
    assert verify(path) == len(entries)


def test_a_torn_tail_at_every_byte_loses_only_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, 5).close()
    whole = path.read_bytes()
    last = [record.offset for record in read(path)][-1]
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        if size > last:
            with pytest.raises(TrajectoryError):
                verify(path)
        assert [record.payload["n"] for record in read(path)] == [0, 1, 2, 3]
        log = Log.open(path)
        assert log.append(Kind.RESULT, {"n": 99}).seq == 4
        log.close()
        assert verify(path) == 5


def test_a_torn_magic_line_is_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for size in range(len(MAGIC)):
        path.write_bytes(MAGIC[:size])
        assert list(read(path)) == []


def test_damage_before_the_last_record_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, 4).close()
    whole = path.read_bytes()
    offsets = [record.offset for record in read(path)]
    for position in range(len(MAGIC), offsets[3]):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(TrajectoryError):
            Log.open(path)
        assert path.read_bytes() == bytes(damaged)
    path.write_bytes(b"something else entirely")
    with pytest.raises(TrajectoryError, match="not a trajectory log"):
        list(read(path))


def test_a_record_taken_out_or_swapped_breaks_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, 4).close()
    whole = path.read_bytes()
    a, b, c = [record.offset for record in read(path)][1:4]
    for forged in (whole[:a] + whole[b:], whole[:a] + whole[b:c] + whole[a:b] + whole[c:]):
        path.write_bytes(forged)
        with pytest.raises(TrajectoryError, match="chain"):
            list(read(path))


def test_one_file_is_one_boxs_log(tmp_path: Path) -> None:
    log = written(tmp_path / "log", 1)
    with pytest.raises(TrajectoryError, match="exists already"):
        Log.create(log.path)
    log.close()


def test_long_output_lies_in_a_blob_and_is_checked(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log")
    short, long = (
        keep(log.path, c * n) for c, n in ((b"x", INLINE_BYTES), (b"y", INLINE_BYTES + 1))
    )
    log.append(Kind.RESULT, {"stdout": short, "stderr": long})
    log.close()
    assert len(list(blob_folder(log.path).iterdir())) == 1
    assert fetch(log.path, long) == b"y" * (INLINE_BYTES + 1)
    assert verify(log.path) == 1
    (blob_folder(log.path) / long["sha256"]).write_bytes(b"forged")
    with pytest.raises(TrajectoryError, match="damaged"):
        verify(log.path)


def test_a_full_disk_refuses_the_record_and_keeps_the_others(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the kernel refuses the write halfway."""
    log = written(tmp_path / "log", 3)
    size = log.path.stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, old[1]))
    try:
        with pytest.raises(TrajectoryError, match="cannot append"):
            log.append(Kind.INTENT, {"text": "z" * 1000})
        with pytest.raises(TrajectoryError, match="cannot write"):
            keep(log.path, b"z" * 10_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert log.path.stat().st_size == size
    assert log.append(Kind.INTENT, {"text": "fits"}).seq == 3
    log.close()
    assert verify(log.path) == 4


def test_keys_are_found_again_at_least_as_fast_as_promised(tmp_path: Path) -> None:
    """Fast-forward reads 20,000 records in about a second or less, also on a busy machine."""
    log = Log.create(tmp_path / "log")
    for n in range(5_000):
        log.append(Kind.INTENT, {"digest": "d", "job": {"argv": ["true"]}}, f"k{n}", sync=False)
        log.append(Kind.RESULT, {"intent": 2 * n, "exit_code": 0}, f"k{n}", sync=False)
    log.close()
    started = time.process_time()
    records = list(read(log.path))
    assert time.process_time() - started < 1.0
    assert len(records) == 10_000


def segmented(path: Path, count: int) -> Log:
    log = Log.create(path, segment_bytes=400)
    for n in range(count):
        log.append(Kind.INTENT, {"n": n, "text": "x" * n}, f"key-{n}", sync=False)
    return log


def test_a_long_log_goes_on_in_further_segments_with_one_chain(tmp_path: Path) -> None:
    log = segmented(tmp_path / "log", 30)
    files = list(segments(log.path))
    assert len(files) > 3
    assert verify(log.path) == 30
    offsets = [record.offset for record in read(log.path)]
    assert [log.read_at(offset).payload["n"] for offset in offsets] == list(range(30))
    log.close()
    log = Log.open(log.path, segment_bytes=400)
    record = log.append(Kind.CLOSE, {"cause": "stopped"})
    assert record.seq == 30
    assert log.read_at(offsets[7]).payload["n"] == 7
    log.close()
    assert verify(log.path) == 31
    files[1].unlink()
    with pytest.raises(TrajectoryError):
        verify(log.path)


def test_a_crash_at_any_byte_of_a_new_segment_leaves_no_gap(tmp_path: Path) -> None:
    log = segmented(tmp_path / "log", 12)
    log.close()
    last = list(segments(log.path))[-1]
    first_there = next(s.record.seq for s in scan(log.path, repair=True) if s.segment > 0)
    whole = last.read_bytes()
    assert first_there > 0
    for size in range(len(whole)):
        last.write_bytes(whole[:size])
        before = [record.seq for record in read(log.path)]
        assert before == list(range(len(before)))
        again = Log.open(log.path, segment_bytes=400)
        assert again.append(Kind.RESULT, {"n": 99}).seq == len(before)
        again.close()
        assert verify(log.path) == len(before) + 1


def test_damage_in_a_closed_segment_is_never_taken_for_a_torn_end(tmp_path: Path) -> None:
    log = segmented(tmp_path / "log", 12)
    log.close()
    size = log.path.stat().st_size
    os.truncate(log.path, size - 3)
    with pytest.raises(TrajectoryError, match="damaged"):
        list(read(log.path))


def test_a_segment_that_cannot_begin_refuses_the_record_and_the_next_try_succeeds(
    tmp_path: Path,
) -> None:
    log = segmented(tmp_path / "log", 1)
    while log.path.stat().st_size < 400:
        log.append(Kind.INTENT, {"n": 1}, sync=False)
    count = log.next_seq
    (tmp_path / "log.1").mkdir()
    with pytest.raises(TrajectoryError):
        log.append(Kind.INTENT, {"n": 2})
    (tmp_path / "log.1").rmdir()
    assert log.append(Kind.INTENT, {"n": 2}).seq == count
    log.close()
    assert verify(log.path) == count + 1
