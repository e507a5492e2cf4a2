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
from baleen.agent.wal import Wal

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


def killed(attempt: Attempt, kind: str, number: int, when: str) -> None:
    """Work until the nth record of a kind, and die there."""
    assert replace(attempt, kill=Kill(kind, number, when)).finish() == -signal.SIGKILL


def marks(attempt: Attempt) -> dict[str, int]:
    """How often each command has run."""
    assert attempt.config.mount is not None
    file = Path(attempt.config.mount) / "marks"
    return dict(Counter(file.read_text().split())) if file.exists() else {}


def history_of(attempt: Attempt) -> History:
    return read_history(attempt.folder / "wal")


def outputs(attempt: Attempt) -> list[str]:
    return [call["output"] for call in attempt.summary["calls"]]


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


def test_killed_in_and_after_every_record_it_finishes_the_same_run(
    whole: Attempt, attempt: Attempt
) -> None:
    num_steps = 0
    while not (attempt.folder / "wal").exists() or history_of(attempt).end is None:
        killed(attempt, "step", 1, "torn")
        killed(attempt, "step", 1, "after")
        num_steps += 1
    assert attempt.finish() == 0
    assert_finished(attempt, history_of(whole))
    assert num_steps == 16  # start, policy, box, end; 3 each of prompt, turn, call, result


@pytest.mark.parametrize("number", [1, 100, 135])
def test_killed_in_a_token_it_finishes_the_same_run(
    whole: Attempt, attempt: Attempt, number: int
) -> None:
    killed(attempt, "tokens", number, "torn")
    assert attempt.finish() == 0
    assert_finished(attempt, history_of(whole))
    assert sidecar(attempt) == sidecar(whole)


def test_killed_again_and_again_at_random_moments_it_finishes_the_same_run(
    whole: Attempt, home: Path, tmp_path: Path
) -> None:
    rng = random.Random(7)
    num_kills = 0
    for number in range(2):
        attempt = new_attempt(tmp_path / str(number), home)
        while not attempt.work_until(int(2 ** rng.uniform(8, 14))):
            num_kills += 1
        assert_finished(attempt, history_of(whole))
    assert num_kills >= 6


def test_killed_together_with_the_edge_it_finishes_the_same_run(
    whole: Attempt, attempt: Attempt, home: Path
) -> None:
    killed(attempt, "result", 2, "before")
    kill_edge(home)
    assert attempt.finish() == 0
    assert_finished(attempt, history_of(whole))


def lose_box(attempt: Attempt) -> None:
    close_box(history_of(attempt).boxes[-1].box_id)


def test_a_call_that_never_reached_its_lost_box_runs_in_the_next(attempt: Attempt) -> None:
    killed(attempt, "call", 2, "after")
    lose_box(attempt)
    assert attempt.finish() == 0
    assert marks(attempt) == ONCE
    assert outputs(attempt) == ["1", "[no output]", "3"]
    assert len(history_of(attempt).boxes) == 2


def test_a_result_that_only_a_lost_box_had_is_found_in_its_log(attempt: Attempt) -> None:
    killed(attempt, "result", 1, "before")
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


def test_two_processes_do_not_work_on_one_run(attempt: Attempt) -> None:
    killed(attempt, "call", 1, "after")
    mine, _ = Wal.open(attempt.folder / "wal")
    assert attempt.finish() == 1
    mine.close()
    assert attempt.finish() == 0
    assert marks(attempt) == ONCE


def sidecar(attempt: Attempt) -> Any:
    return read_json(attempt.folder / "tokens.json")
