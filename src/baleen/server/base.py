"""The contract between the gateway and whatever computes tokens.

An upstream is given token ids and returns token ids. It knows nothing of messages, tools or
dialects, so one small interface covers a model in this process, vLLM, SGLang, llama-server and a
script. Tokens are pushed, from within the event loop's read where they come from a socket: waking a
task for each costs more than all else that is done with it. Cancelling the task that generates
cancels the generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from baleen.protocol.grammar import AnswerForm
from baleen.server.room import Room


@dataclass(frozen=True, slots=True)
class Generation:
    """What an upstream is asked for."""

    ids: Sequence[int]
    """The whole prompt, what has been sampled of this answer included."""
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int | None = None
    """None: no log-probabilities; 0: those of the sampled tokens; above: of as many others too."""
    min_tokens: int = 0
    """End-of-sentence may not come before as many tokens."""
    constraint: Constraint | None = None
    scores_prompt: bool = False
    """The log-probabilities of the prompt's own tokens are wanted too."""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the output has to look like; upstreams use the form that they can."""

    tools: Sequence[Any] = ()
    """Definitions in Chat Completions form: calls must be to these and fit their schemas."""
    choice: Any = "auto"
    """The Chat Completions ``tool_choice``; a forced one follows the reasoning at once."""
    parallel: bool = True
    """False: one call and no more."""
    form: AnswerForm | None = None
    """What the answer behind the reasoning has to look like."""
    thinking: bool = False
    """The output begins within reasoning, which is free."""
    in_block: bool = False
    """The prompt has opened a block of calls."""

    @property
    def has_calls(self) -> bool:
        """Whether there are tools that may be called."""
        return bool(self.tools) and self.choice != "none"


class Piece(NamedTuple):
    """Some more tokens, as they came."""

    ids: Sequence[int]
    logprobs: Sequence[float] = ()
    """One per id if asked for; NaN where the upstream does not know it."""
    finish: str | None = None
    """``stop`` or ``length`` with the last piece."""
    cached_tokens: int | None = None
    """How many prompt tokens the upstream did not have to compute; None while it has not said."""
    top: Sequence[Sequence[tuple[int, float]]] = ()
    """Per id the likeliest alternatives with their log-probabilities, if asked for."""
    prompt_logprobs: Sequence[float] = ()
    """With the first piece, if asked for: one per prompt id; NaN for the first."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an upstream can do beyond generating."""

    name: str
    """Kind and version, for people."""
    context_tokens: int
    calls_grammar: bool = False
    """It can hold calls to their schemas."""
    json_grammar: bool = False
    """It can hold an answer to a JSON schema or a pattern."""
    logprobs: bool = True
    prompt_logprobs: bool = False
    """It can tell those of a prompt's tokens."""
    reports_cache: bool = True


class EngineState(NamedTuple):
    """What an engine in this process is doing; one elsewhere has metrics of its own."""

    num_waiting: int = 0
    """Generations that wait for others to end."""
    cache_usage: float = 0.0
    """Share of the room for computed tokens that is taken."""
    num_recomputed: int = 0
    """Prompt tokens so far that had been computed before, and were not to be had any more."""


class Taker(Protocol):
    """Who is given the tokens of a generation."""

    room: Room
    """Where it is full, nothing more is handed over before it is cleared."""

    def take(self, piece: Piece) -> bool:
        """Some more tokens; False: enough, the generation ends here."""
        ...


class Upstream(Protocol):
    """Something that continues token ids."""

    async def capabilities(self) -> Capabilities:
        """What it can do.

        Raises:
            UpstreamError: it cannot be reached.
        """
        ...

    async def generate(self, asked: Generation, taker: Taker) -> None:
        """Continue the ids; the last piece has ``finish``, end-of-sentence is among the ids.

        Returns behind that piece, or when the taker has enough; cancelling takes one step.

        Raises:
            UpstreamError: it cannot be reached, refuses, or breaks off.
        """
        ...

    def state(self) -> EngineState:
        """What it is doing right now."""
        ...

    async def close(self) -> None:
        """Let go of connections, threads and memory."""
        ...
