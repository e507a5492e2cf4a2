"""Variables of a build: what `$NAME` in an instruction stands for, and what ARG does."""

from __future__ import annotations

from collections.abc import Mapping

from ..oci import own_architecture
from .parser import Instruction
from .stages import State
from .words import WordError, expand, expand_text, split

_PLATFORM_WORDS = ("TARGETARCH", "TARGETOS", "TARGETPLATFORM", "BUILDPLATFORM")


class Variables:
    """Build arguments, the platform's words, and the ARGs before the first FROM."""

    def __init__(self, escape: str, build_args: Mapping[str, str]) -> None:
        self._escape = escape
        self._build_args = build_args
        self._platform = _platform_words()
        self._globals: dict[str, str] = {}

    @property
    def of_from(self) -> dict[str, str]:
        """What a FROM may name."""
        return {**self._platform, **self._globals}

    def expand(self, step: Instruction, text: str, variables: Mapping[str, str]) -> str:
        """One word with its variables replaced."""
        try:
            return expand(text, variables, self._escape)
        except WordError as error:
            raise step.fail(str(error)) from None

    def expand_document(self, text: str, variables: Mapping[str, str]) -> str:
        """A here-document with its variables replaced."""
        return expand_text(text, variables, self._escape)

    def split(self, step: Instruction, variables: Mapping[str, str]) -> list[str]:
        """An instruction's words with their variables replaced."""
        try:
            return split(step.rest, variables, self._escape)
        except WordError as error:
            raise step.fail(str(error)) from None

    def flags(self, step: Instruction, state: State) -> dict[str, str]:
        """An instruction's flags with their variables replaced."""
        return {k: self.expand(step, v, state.variables) for k, v in step.flags.items()}

    def declare(self, step: Instruction) -> None:
        """An ARG before the first FROM."""
        for word in self.split(step, self._globals):
            name, equals, value = word.partition("=")
            if name in self._build_args:
                self._globals[name] = self._build_args[name]
            elif equals:
                self._globals[name] = value

    def take(self, state: State, step: Instruction) -> None:
        """An ARG in a stage."""
        for word in self.split(step, state.variables):
            name, equals, value = word.partition("=")
            known = {**self.of_from, **self._build_args}
            if name in self._build_args:
                value = self._build_args[name]
            elif not equals and name in known:
                value = known[name]
            elif not equals:
                continue
            state.args[name] = value


def _platform_words() -> dict[str, str]:
    architecture = own_architecture()
    values = (architecture, "linux", f"linux/{architecture}", f"linux/{architecture}")
    return dict(zip(_PLATFORM_WORDS, values, strict=True))
