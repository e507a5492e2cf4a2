"""A run that is killed at any point finishes, and no command of it runs twice."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attempt import Attempt, Kill
from edge_home import close_box, edge_home, kill_edge
from scripted_engine import turn_text

from baleen.agent.atif_check import problems
from baleen.agent.config import RunConfig
from baleen.agent.history import History
from baleen.agent.journal import read_history
from baleen.agent.observation import IN_DOUBT
from baleen.agent.run_folder import read_json
from baleen.agent.wal import read

COMMANDS = ("echo one >> marks; echo 1", "echo two >> marks", "echo three >> marks; echo 3")
TURNS = (
    turn_text("First.", "", COMMANDS[:2]),
    turn_text("Then.", "", COMMANDS[2:]),
    turn_text("Done.", "8443"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An edge for the runs of this module."""
    with edge_home(tmp_path_factory.mktemp("home")) as root:
        yield root


def new_attempt(folder: Path, home: Path, turns: tuple[str, ...] = TURNS) -> Attempt:
    """A run that has not begun, with a writable folder in which its commands leave marks."""
    (folder / "work").mkdir(parents=True)
    config = RunConfig("?", mount=str(folder / "work"), mount_mode="rw", prompt="nano")
    return Attempt(folder / "run", home, turns, config)


@pytest.fixture
def attempt(tmp_path: Path, home: Path) -> Attempt:
    return new_attempt(tmp_path, home)


def killed(attempt: Attempt, record: int, when: str) -> None:
    assert replace(attempt, kill=Kill(record, when)).finish() == -signal.SIGKILL


def marks(attempt: Attempt) -> dict[str, int]:
    """How often each command has run."""
    assert attempt.config.mount is not None
    file = Path(attempt.config.mount) / "marks"
    return dict(Counter(file.read_text().split())) if file.exists() else {}


def history_of(attempt: Attempt) -> History:
    return read_history(attempt.folder / "wal")


def outputs(attempt: Attempt) -> list[str]:
    return [call["output"] for call in attempt.summary["calls"]]


def kinds(attempt: Attempt) -> list[str]:
    return [body["kind"] for body in read(attempt.folder / "wal")]


def nth(kind: str, number: int, sequence: list[str]) -> int:
    """Position, counted from 1, of the nth record of a kind."""
    return [place for place, found in enumerate(sequence, 1) if found == kind][number]


ONCE = {"one": 1, "two": 1, "three": 1}


def assert_finished(attempt: Attempt, whole: History) -> None:
    """The run ended as if nothing had happened, token for token."""
    found = history_of(attempt)
    assert attempt.summary["outcome"] == "stop"
    assert attempt.summary["answer"] == "8443"
    assert marks(attempt) == ONCE
    assert outputs(attempt) == ["1", "[no output]", "3"]
    assert found.context_ids == whole.context_ids
    assert [turn.logprobs for turn in found.turns] == [turn.logprobs for turn in whole.turns]
    assert problems(read_json(attempt.folder / "trajectory.json")) == []
    assert len(found.boxes) == 1


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """The same run without a kill."""
    attempt = new_attempt(tmp_path_factory.mktemp("whole"), home)
    assert attempt.finish() == 0
    assert_finished(attempt, history_of(attempt))
    return attempt


@pytest.mark.parametrize("when", ["torn", "after"])
def test_killed_at_every_record_it_finishes_the_same_run(
    whole: Attempt, home: Path, tmp_path: Path, when: str
) -> None:
    sequence = kinds(whole)
    tokens = [place for place, kind in enumerate(sequence, 1) if kind == "tokens"]
    others = [place for place, kind in enumerate(sequence, 1) if kind != "tokens"]
    for record in others + random.Random(when).sample(tokens, 5):
        attempt = new_attempt(tmp_path / str(record), home)
        killed(attempt, record, when)
        assert attempt.finish() == 0, f"killed {when} record {record}, {sequence[record - 1]}"
        assert_finished(attempt, history_of(whole))


def test_killed_again_and_again_at_random_moments_it_finishes_the_same_run(
    whole: Attempt, home: Path, tmp_path: Path
) -> None:
    rng = random.Random(7)
    num_kills = 0
    for number in range(4):
        attempt = replace(new_attempt(tmp_path / str(number), home), pause_s=0.001)
        for _ in range(100):
            process = attempt.start()
            process.join(rng.uniform(0.1, 0.9))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            num_kills += 1
        assert_finished(attempt, history_of(whole))
    assert num_kills >= 4


def test_killed_together_with_the_edge_it_finishes_the_same_run(
    whole: Attempt, attempt: Attempt, home: Path
) -> None:
    killed(attempt, nth("result", 1, kinds(whole)), "before")
    kill_edge(home)
    assert attempt.finish() == 0
    assert_finished(attempt, history_of(whole))


def lose_box(attempt: Attempt) -> None:
    close_box(history_of(attempt).boxes[-1].box_id)


def test_a_call_that_never_reached_its_lost_box_runs_in_the_next(
    whole: Attempt, attempt: Attempt
) -> None:
    killed(attempt, nth("call", 1, kinds(whole)), "after")
    lose_box(attempt)
    assert attempt.finish() == 0
    assert marks(attempt) == ONCE
    assert outputs(attempt) == ["1", "[no output]", "3"]
    assert len(history_of(attempt).boxes) == 2


def test_a_result_that_only_a_lost_box_had_is_found_in_its_log(
    whole: Attempt, attempt: Attempt
) -> None:
    killed(attempt, nth("result", 0, kinds(whole)), "before")
    lose_box(attempt)
    assert attempt.finish() == 0
    assert marks(attempt) == ONCE
    assert attempt.summary["calls"][0]["replayed"]
    assert outputs(attempt) == ["1", "[no output]", "3"]


def test_a_command_that_was_lost_while_it_ran_is_in_doubt_and_not_run_again(
    tmp_path: Path, home: Path
) -> None:
    turns = (turn_text("", "", ["echo slow >> marks; sleep 30; echo end >> marks"]), TURNS[2])
    attempt = new_attempt(tmp_path, home, turns)
    process = attempt.start()
    while not marks(attempt):
        time.sleep(0.005)
    process.kill()
    process.join()
    lose_box(attempt)
    assert attempt.finish() == 0
    assert marks(attempt) == {"slow": 1}
    assert outputs(attempt) == [IN_DOUBT]
    message = history_of(attempt).messages()[3]
    assert message["content"] == IN_DOUBT
    assert attempt.summary["calls"][0]["source"] == "in_doubt"


def test_a_command_that_still_runs_is_waited_for(tmp_path: Path, home: Path) -> None:
    turns = (turn_text("", "", ["echo slow >> marks; sleep 0.7; echo end"]), TURNS[2])
    attempt = new_attempt(tmp_path, home, turns)
    process = attempt.start()
    while not marks(attempt):
        time.sleep(0.005)
    process.kill()
    process.join()
    assert attempt.finish() == 0
    assert marks(attempt) == {"slow": 1}
    assert outputs(attempt) == ["end"]


def test_a_finished_run_is_only_reported(attempt: Attempt) -> None:
    assert attempt.finish() == 0
    before = (attempt.folder / "wal").read_bytes()
    summary = attempt.summary
    (attempt.folder / "summary.json").unlink()
    assert attempt.finish() == 0
    assert (attempt.folder / "wal").read_bytes() == before
    assert {**attempt.summary, "endpoint": {}} == {**summary, "endpoint": {}}
    assert marks(attempt) == ONCE


def test_two_processes_do_not_work_on_one_run(tmp_path: Path, home: Path) -> None:
    attempt = replace(new_attempt(tmp_path, home), pause_s=0.002)
    first = attempt.start()
    while not (attempt.folder / "wal").exists():
        time.sleep(0.005)
    assert attempt.finish() == 1
    first.join()
    assert first.exitcode == 0
    assert marks(attempt) == ONCE


def sidecar(attempt: Attempt) -> Any:
    return read_json(attempt.folder / "tokens.json")


def test_the_token_sidecar_does_not_show_that_there_was_a_kill(
    whole: Attempt, attempt: Attempt
) -> None:
    killed(attempt, nth("tokens", 30, kinds(whole)), "torn")
    assert attempt.finish() == 0
    assert sidecar(attempt) == sidecar(whole)
