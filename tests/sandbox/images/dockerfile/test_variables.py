"""Where the value of a variable comes from: build argument, default, platform, earlier ARG."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from baleen.sandbox.images.base import Image
from baleen.sandbox.images.dockerfile.parser import Instruction, parse
from baleen.sandbox.images.dockerfile.stages import DEFAULT_PATH, State, divide
from baleen.sandbox.images.dockerfile.variables import Variables


def after_args(text: str, build_args: Mapping[str, str]) -> tuple[Variables, State, Instruction]:
    """The state after the ARGs of the only stage, and its last instruction."""
    before, (stage,) = divide(parse(text, "Dockerfile").instructions)
    variables, state = Variables("\\", build_args), State(Image())
    for step in before:
        variables.declare(step)
    for step in stage.steps[:-1]:
        variables.take(state, step)
    return variables, state, stage.steps[-1]


@pytest.mark.parametrize(
    ("text", "build_args", "value"),
    [
        ("FROM a\nARG V=default\nRUN $V\n", {}, "default"),
        ("FROM a\nARG V=default\nRUN $V\n", {"V": "given"}, "given"),
        ("ARG V=global\nFROM a\nARG V\nRUN $V\n", {}, "global"),
        ("ARG V=global\nFROM a\nRUN $V\n", {"V": "given"}, ""),
        ("FROM a\nARG TARGETOS\nRUN $TARGETOS\n", {}, "linux"),
        ("FROM a\nARG A=1\nARG B=$A-2\nRUN $B\n", {}, "1-2"),
        ("FROM a\nARG V\nRUN $PATH\n", {}, DEFAULT_PATH),
    ],
)
def test_a_variable_has_the_value_that_docker_gives_it(
    text: str, build_args: dict[str, str], value: str
) -> None:
    variables, state, step = after_args(text, build_args)
    assert variables.expand(step, step.rest, state.variables) == value


def test_an_argument_without_value_is_not_handed_to_commands() -> None:
    _, state, _ = after_args("FROM a\nARG V\nARG W=1\nRUN x\n", {})
    assert state.args == {"W": "1"}
