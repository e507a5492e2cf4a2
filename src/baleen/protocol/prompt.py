"""An encoded prompt: its segments, its ids, and the parser for the answer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

from baleen.protocol.cache_break import Mark
from baleen.protocol.layout import Layout
from baleen.protocol.message import Message
from baleen.protocol.parser import Parser
from baleen.protocol.segments import Sampled, Segment
from baleen.protocol.tokenizing import SegmentEncoder, encoder_for
from baleen.protocol.tool_choice import ChoiceMode, ToolChoice


@dataclass(frozen=True, slots=True)
class Request:
    """The messages and options that a prompt was made of."""

    messages: Sequence[Message]
    options: Mapping[str, Any]
    layout: Layout


@dataclass(frozen=True)
class Prompt:
    """What the model is given, and what its answer has to be read with."""

    new_segments: Sequence[Segment]
    """The segments behind those of ``parent``; all of them, if there is none."""
    thinking: bool
    tools: Sequence[Any] | None = None
    """Tool definitions as given; they type the arguments of the answer."""
    start: str | None = None
    """Where the answer continues: reasoning, content, calls; None for the start of a turn."""
    choice: ToolChoice = field(default_factory=ToolChoice)
    parent: Prompt | None = None
    """The prompt that this one goes on from."""
    request: Request | None = None
    """What it was made of; needed to go on from it."""
    marks: Sequence[Mark] = ()
    """Which of the new segments each message starts with."""
    sampled: Sequence[Sampled] = ()
    """Runs of the new segments whose ids are known because they were sampled."""
    missing_reasoning: tuple[int, ...] = ()
    """Messages that called tools and came back without the field; shown as empty reasoning."""
    _ids: dict[SegmentEncoder, list[int]] = field(default_factory=dict, repr=False, compare=False)
    cache_break_reason: str | None = None
    """Why this is not the continuation of the prompt it was to continue; None if it is."""

    @cached_property
    def segments(self) -> Sequence[Segment]:
        """``(text, is_special)`` pairs; each special token stands alone."""
        if self.parent is None:
            return self.new_segments
        return [segment for prompt in self._lineage() for segment in prompt.new_segments]

    @property
    def messages(self) -> list[Message]:
        """All messages of this prompt."""
        return [m for prompt in self._lineage() if prompt.request for m in prompt.request.messages]

    def _lineage(self) -> list[Prompt]:
        prompts: list[Prompt] = []
        prompt: Prompt | None = self
        while prompt is not None:
            prompts.append(prompt)
            prompt = prompt.parent
        return prompts[::-1]

    @cached_property
    def text(self) -> str:
        """The prompt as one string; for looking at, since ids cannot be made from it safely."""
        return "".join(map(itemgetter(0), self.segments))

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Ids of the prompt; text that spells a special token stays ordinary text.

        Raises:
            TokenizerError: the tokenizer lacks a special token of this prompt.
        """
        encoder = encoder_for(tokenizer)
        ids: list[int] = []
        for prompt in self._lineage():
            known = prompt._ids.get(encoder)
            if known is None:
                known = prompt._ids[encoder] = encoder.encode(prompt.new_segments, prompt.sampled)
            ids += known
        return ids

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
