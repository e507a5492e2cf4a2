"""Tasks can be solved, their answers are unique, and the splits share nothing."""

from __future__ import annotations

import random
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.rl.tasks import Family, Split, arithmetic_task, lookup_task, other_task
from baleen.rl.tasks.arithmetic import command, draw_operands, result
from baleen.rl.tasks.lookup import NOTHING_FOUND, grep, matches
from baleen.rl.tasks.words import draw_key, draw_word

seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(seeds, st.sampled_from(list(Split)))
def test_only_the_right_file_mentions_the_word(seed: int, split: Split) -> None:
    task = lookup_task(random.Random(seed), split)
    word = task.solution.calls[0].command.split()[2]
    hits = [name for name, text in task.files.items() if grep(word, text) != NOTHING_FOUND]
    expected = task.solution.calls[0].output
    assert hits == ([] if expected == NOTHING_FOUND else [expected.removeprefix("./")])


@settings(deadline=None)
@given(seeds)
def test_the_answer_is_what_the_line_of_the_key_says(seed: int) -> None:
    task = lookup_task(random.Random(seed), Split.TRAIN)
    if len(task.solution.calls) == 2 and task.solution.calls[1].output != NOTHING_FOUND:
        key = task.solution.calls[1].command.split()[2]
        lines = task.solution.calls[1].output.splitlines()
        own = [line for line in lines if line.startswith(key)]
        assert len(own) == 1
        assert own[0].endswith(task.answer)


@given(seeds)
def test_splits_share_no_word_and_no_key(seed: int) -> None:
    rng = random.Random(seed)
    for draw in (draw_word, draw_key):
        assert not Split.EVAL.owns(draw(rng, Split.TRAIN))
        assert Split.EVAL.owns(draw(rng, Split.EVAL))


@given(seeds, st.sampled_from([lookup_task, arithmetic_task, other_task]))
def test_doing_nothing_earns_nothing_and_the_solution_everything(seed: int, draw: object) -> None:
    task = draw(random.Random(seed), Split.EVAL)  # type: ignore[operator]
    assert not task.is_correct("")
    assert task.is_correct(task.solution.answer)


@pytest.mark.parametrize(
    ("line", "found"),
    [("port = 1", True), ("Port: 1", True), ("http-port = 1", True), ("report = 1", False)],
)
def test_matching_follows_grep_w(line: str, found: bool) -> None:
    assert matches("port", line) is found


@pytest.mark.parametrize("op", ["+", "-", "*", "/"])
@pytest.mark.parametrize("a", [-77, -7, 0, 3, 77])
@pytest.mark.parametrize("b", [-10, -2, 2, 5])
def test_the_command_prints_the_result_in_a_real_shell(a: int, op: str, b: int) -> None:
    for line in (command(a, op, b), command(a, op, b).replace(" ", "").replace("echo", "echo ")):
        done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(result(a, op, b)), line


def test_a_quarter_of_the_questions_have_a_negative_number() -> None:
    rng = random.Random(0)
    drawn = [draw_operands(rng, Split.TRAIN) for _ in range(2000)]
    share = sum(a < 0 or b < 0 for a, _, b in drawn) / len(drawn)
    assert 0.2 < share < 0.33
    assert any(a < 0 and b < 0 and op == "-" for a, op, b in drawn)


def test_families_are_named() -> None:
    rng = random.Random(0)
    families = [
        draw(rng, Split.TRAIN).family for draw in (lookup_task, arithmetic_task, other_task)
    ]
    assert families == list(Family)
