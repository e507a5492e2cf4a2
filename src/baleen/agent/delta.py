"""Putting a streamed Chat Completions answer together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baleen.agent.base import ToolCall, Turn, Usage, Watch
from baleen.agent.timer import Timer
from baleen.errors import EndpointError

REASONING_FIELDS = ("reasoning_content", "reasoning")
"""DeepSeek's spelling and vLLM's; a server may send both with the same text."""


@dataclass
class _CallParts:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class TurnBuilder:
    """Collects the chunks of one answer."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._content: list[str] = []
        self._reasoning: dict[str, list[str]] = {}
        self._calls: dict[int, _CallParts] = {}
        self._finish_reason: str | None = None
        self._usage = Usage()

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Take in one chunk.

        Raises:
            EndpointError: it carries an error, or is not shaped like a chunk.
        """
        if chunk.get("error"):
            raise EndpointError(f"the endpoint failed in mid-answer: {_error_text(chunk['error'])}")
        try:
            if usage := chunk.get("usage"):
                self._usage = _usage(usage)
            for choice in chunk.get("choices") or ():
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                self._feed_delta(choice.get("delta") or {})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EndpointError(
                f"the endpoint sent a chunk that cannot be read: {str(chunk)[:200]}",
                remedy="is this an OpenAI-compatible Chat Completions endpoint?",
            ) from error

    def finish(self, timer: Timer) -> Turn:
        """The whole turn.

        Raises:
            EndpointError: the stream ended before the answer did.
        """
        if self._finish_reason is None:
            raise EndpointError(
                "the endpoint's stream ended before the answer was complete",
                remedy="run again with --resume; the turn will be asked for anew",
            )
        reasoning = {name: "".join(parts) for name, parts in self._reasoning.items()}
        return Turn(
            reasoning=next(iter(reasoning.values()), ""),
            content="".join(self._content),
            calls=self._finished_calls(),
            finish_reason="length" if self._finish_reason == "length" else "stop",
            usage=self._usage,
            duration_s=timer.elapsed_s,
            first_token_s=timer.first_s,
            reasoning_fields=tuple(reasoning),
        )

    def _feed_delta(self, delta: Mapping[str, Any]) -> None:
        heard = False
        for name in REASONING_FIELDS:
            if text := delta.get(name):
                self._reasoning.setdefault(name, []).append(text)
                if not heard:
                    self._watch.reasoning(text)
                heard = True
        if text := delta.get("content"):
            self._content.append(text)
            self._watch.content(text)
        for part in delta.get("tool_calls") or ():
            self._feed_call(part)

    def _feed_call(self, part: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(int(part.get("index") or 0), _CallParts())
        call.id = part.get("id") or call.id
        function = part.get("function") or {}
        call.name += function.get("name") or ""
        call.arguments.append(function.get("arguments") or "")

    def _finished_calls(self) -> tuple[ToolCall, ...]:
        if self._finish_reason == "length":
            return ()  # the last one may be cut, and the turn ends the run anyway
        return tuple(
            ToolCall(
                id=parts.id or f"call_{index:02d}",
                name=parts.name,
                arguments="".join(parts.arguments) or "{}",
            )
            for index, parts in sorted(self._calls.items())
        )


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
    return Usage(
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        cached_tokens=int(cached),
    )


def _error_text(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, Mapping) else error)[:500]
