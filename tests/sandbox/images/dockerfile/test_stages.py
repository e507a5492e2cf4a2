"""Dividing a Dockerfile into stages, and finding one by name or number."""

from __future__ import annotations

import pytest

from baleen.sandbox.images.dockerfile.parser import parse
from baleen.sandbox.images.dockerfile.stages import Stage, divide, find
from baleen.sandbox.images.errors import BuildError


def stages_of(text: str) -> list[Stage]:
    return divide(parse(text, "Dockerfile").instructions)[1]


def test_steps_belong_to_the_from_above_them() -> None:
    before, stages = divide(
        parse("ARG V=1\nFROM a AS One\nRUN x\nFROM b\nRUN y\nRUN z\n", "Dockerfile").instructions
    )
    assert [step.rest for step in before] == ["V=1"]
    assert [(stage.name, [step.rest for step in stage.steps]) for stage in stages] == [
        ("one", ["x"]),
        ("1", ["y", "z"]),
    ]


def test_the_last_stage_of_a_name_is_found_in_any_case_and_by_number() -> None:
    stages = stages_of("FROM a AS x\nFROM b AS x\nFROM c\n")
    assert find(stages, "X") is stages[1]
    assert find(stages, "0") is stages[0]
    assert find(stages[:1], "2") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RUN x\nFROM a\n", "stands before the first FROM"),
        ("FROM a AS\n", "is not IMAGE"),
        ("FROM a\nRUN --mount=type=cache x\n", "--mount is not supported"),
    ],
)
def test_what_is_no_stage_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        stages_of(text)
