"""The contract between the agent loop and whatever samples the model's turns.

An endpoint gets a journal, reads from its history what was said so far, and writes down what it
samples *while* it samples, so that a killed process loses nothing that anyone acted on. It returns
the finished turn; it never runs a tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from baleen.agent.journal import Journal


@dataclass(frozen=True)
class ToolCall:
    """One call as the model wrote it."""

    id: str
    name: str
    arguments: str
    """JSON text; anything else is reported back to the model as an invalid call."""
    status: str = "clean"
    """`clean`, `repaired` or `malformed`, as the parser judged it."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one turn."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that did not have to be computed again."""


@dataclass(frozen=True)
class Turn:
    """One finished turn of the model."""

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]
    finish_reason: str
    """`stop`, `tool_calls`, or `length` when a limit cut the turn."""
    usage: Usage
    duration_s: float = 0.0
    first_token_s: float = 0.0
    """Seconds of it until the first token: the prompt, and a server's queue."""
    reasoning_fields: tuple[str, ...] = ("reasoning_content",)
    """Names under which the endpoint sent the reasoning; it is sent back under the same ones."""

    @property
    def tokens_per_s(self) -> float:
        """Sampling speed behind the first token; 0 when there is nothing to measure."""
        sampling_s = self.duration_s - self.first_token_s
        num_timed = self.usage.completion_tokens - 1
        return num_timed / sampling_s if num_timed > 0 and sampling_s > 0 else 0.0


class Watch:
    """Hears what happens in a run, as it happens; this one ignores everything."""

    def note(self, text: str) -> None:
        """Something the user should know that is neither model nor tool output."""

    def reasoning(self, text: str) -> None:
        """A piece of the model's reasoning."""

    def content(self, text: str) -> None:
        """A piece of the model's answer."""

    def turn_ended(self, turn: Turn) -> None:
        """The turn is complete and durable."""

    def call_started(self, call: ToolCall) -> None:
        """The call is durable and about to run."""

    def call_ended(self, call: ToolCall, text: str) -> None:
        """What the model will be shown of the call."""


class Endpoint(Protocol):
    """Anything that can continue a conversation by one turn."""

    name: str
    """The model's name, for records."""

    async def sample(self, journal: Journal, max_tokens: int, watch: Watch) -> Turn:
        """Continue the journal's history by one turn of at most `max_tokens` tokens.

        A turn that an earlier process began is continued after its last recorded token by an
        endpoint that takes tokens, and sampled anew by one that takes messages.

        Raises:
            EndpointError: the model could not be reached or answered something unusable.
        """
        ...

    def facts(self) -> Mapping[str, Any]:
        """What a summary should say about this endpoint: counters, cache sizes."""
        ...

    async def close(self) -> None:
        """Free connections and memory; safe to call twice."""
        ...
