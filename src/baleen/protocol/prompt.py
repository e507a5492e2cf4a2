"""An encoded prompt: its segments, its ids, and the parser for the answer to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from baleen.protocol.parser import Parser
from baleen.protocol.segments import Segment
from baleen.protocol.tokenizing import encoder_for
from baleen.protocol.tool_choice import ChoiceMode, ToolChoice


@dataclass(frozen=True)
class Prompt:
    """What the model is given, and what its answer has to be read with."""

    segments: Sequence[Segment]
    """``(text, is_special)`` pairs; each special token stands alone."""
    thinking: bool
    tools: Sequence[Any] | None = None
    """Tool definitions as given; they type the arguments of the answer."""
    start: str | None = None
    """Where the answer continues: reasoning, content, calls; None for the start of a turn."""
    choice: ToolChoice = field(default_factory=ToolChoice)

    @cached_property
    def text(self) -> str:
        """The prompt as one string; for looking at, since ids cannot be made from it safely."""
        return "".join(text for text, _ in self.segments)

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Ids of the prompt; text that spells a special token stays ordinary text.

        Raises:
            TokenizerError: the tokenizer lacks a special token of this prompt.
        """
        return encoder_for(tokenizer).encode(self.segments)

    def parser(self, *, repair: str = "schema", tokenizer: Any = None) -> Parser:
        """A parser in the state in which the model's answer begins."""
        return Parser(
            tools=self.tools,
            thinking=self.thinking,
            start=self.start,
            calls=self.choice.mode is not ChoiceMode.NONE,
            repair=repair,
            tokenizer=tokenizer,
        )
