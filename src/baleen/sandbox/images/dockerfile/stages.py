"""Stages: one FROM and what follows it, and where a stage stands while it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..base import Image
from .parser import Instruction

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What `$PATH` stands for where an image sets none; boxes use the same."""

_FLAGS = {
    "FROM": ("platform",),
    "RUN": ("network",),
    "COPY": ("from", "chown", "chmod", "link"),
    "ADD": ("chown", "chmod", "checksum", "link"),
    "HEALTHCHECK": ("interval", "timeout", "start-period", "start-interval", "retries"),
}


@dataclass
class Stage:
    """One FROM and what follows it; and once it is built, its image."""

    name: str
    start: Instruction
    steps: list[Instruction] = field(default_factory=list)
    image: Image | None = None


@dataclass
class State:
    """Where a stage stands between two steps."""

    image: Image
    args: dict[str, str] = field(default_factory=dict)
    """Values of ARG, which RUN sees and the image does not keep."""
    entry_is_new: bool = False
    """ENTRYPOINT was set in this stage, so that a CMD of the base no longer holds."""

    @property
    def variables(self) -> dict[str, str]:
        return {"PATH": DEFAULT_PATH, **self.args, **self.image.config.env}

    def with_config(self, **changes: Any) -> None:
        self.image = replace(self.image, config=replace(self.image.config, **changes))


def divide(instructions: Sequence[Instruction]) -> tuple[list[Instruction], list[Stage]]:
    """The ARGs before the first FROM, and the stages.

    Raises:
        BuildError: a flag that is not offered, a FROM that is none, a step before the first FROM.
    """
    before: list[Instruction] = []
    stages: list[Stage] = []
    for step in instructions:
        unknown = set(step.flags) - set(_FLAGS.get(step.name, ()))
        if unknown:
            raise step.fail(f"--{min(unknown)} is not supported")
        if step.name == "FROM":
            stages.append(_begun(step, len(stages)))
        elif stages:
            stages[-1].steps.append(step)
        elif step.name == "ARG":
            before.append(step)
        else:
            raise step.fail("stands before the first FROM")
    return before, stages


def _begun(step: Instruction, number: int) -> Stage:
    words = step.rest.split()
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise step.fail(f"{step.rest!r} is not IMAGE [AS NAME]")
    return Stage(words[2].lower() if len(words) == 3 else str(number), step)


def find(stages: Sequence[Stage], name: str) -> Stage | None:
    """The last of the stages that has this name or number."""
    for index, stage in reversed(list(enumerate(stages))):
        if name.lower() == stage.name or name == str(index):
            return stage
    return None
