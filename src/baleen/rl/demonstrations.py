"""What supervised training imitates: clean solutions, and imperfect ones for an honest start of RL.

A policy that already solves everything leaves RL nothing to show. So the last part of supervised
training mixes right solutions with guesses, wrong reads and wrong operands; RL has to find out,
from rewards alone, which of its habits work.
"""

from __future__ import annotations

import dataclasses
import random

from baleen.agent.observation import IN_DOUBT
from baleen.rl.tasks import Family, Split, Task, Trace, arithmetic_task, lookup_task, other_task
from baleen.rl.tasks.arithmetic import arithmetic_call, draw_operands
from baleen.rl.tasks.lookup import find_call, grep, read_call
from baleen.rl.tasks.words import draw_key, draw_value, draw_word

LOOKUP_SHARE, ARITHMETIC_SHARE = 0.75, 0.21
IN_DOUBT_SHARE = 0.04
RIGHT_SHARE, GUESS_SHARE = 0.40, 0.35
"""Of an imperfect mix; the rest uses the tool wrongly."""


def draw_task(rng: random.Random, split: Split) -> Task:
    """A task of any family, in the proportions of training."""
    roll = rng.random()
    if roll < LOOKUP_SHARE:
        return lookup_task(rng, split)
    if roll < LOOKUP_SHARE + ARITHMETIC_SHARE:
        return arithmetic_task(rng, split)
    return other_task(rng, split)


def clean(rng: random.Random, task: Task) -> Trace:
    """The task's solution; now and then one result is lost, and the call is made again."""
    calls = task.solution.calls
    if calls and rng.random() < IN_DOUBT_SHARE:
        lost = rng.randrange(len(calls))
        again = dataclasses.replace(calls[lost], output=IN_DOUBT)
        calls = (*calls[:lost], again, *calls[lost:])
    return dataclasses.replace(task.solution, calls=calls)


def imperfect(rng: random.Random, task: Task) -> Trace:
    """A right solution, a guess, or a wrong use of the tool."""
    roll = rng.random()
    if task.family is Family.OTHER or roll < RIGHT_SHARE:
        return clean(rng, task)
    if roll < RIGHT_SHARE + GUESS_SHARE:
        return _guess(rng, task)
    return _wrong_numbers(rng) if task.family is Family.ARITHMETIC else _wrong_read(rng, task)


def _guess(rng: random.Random, task: Task) -> Trace:
    """An answer out of thin air."""
    answer = (
        str(rng.randint(-9, 10 ** rng.randint(1, 8)))
        if task.family is Family.ARITHMETIC
        else draw_value(rng)
    )
    return Trace((), "I guess.", answer)


def _wrong_numbers(rng: random.Random) -> Trace:
    call = arithmetic_call(*draw_operands(rng, Split.TRAIN))
    return Trace((call,), f"The result is {call.output}.", call.output)


def _wrong_read(rng: random.Random, task: Task) -> Trace:
    """Looks for another word, or reads another file or key than it should."""
    first = task.solution.calls[0]
    if rng.random() < 0.5 or len(task.solution.calls) < 2:
        key, word = draw_key(rng, Split.TRAIN), draw_word(rng, Split.TRAIN)
        call = find_call(key, word, "[exit 1]")
        return Trace((call,), f"No file has {word}.", f"No file mentions {word}.")
    file = rng.choice(sorted(task.files))
    key = task.solution.calls[1].reasoning.removeprefix("Key ").split(",")[0]
    shown = grep(key, task.files[file])
    value = shown.splitlines()[0].replace(":", "=").partition("=")[2].strip() or "none"
    second = read_call(key, f"./{file}", shown)
    return Trace((first, second), f"{key} is {value}.", value)
