"""From a request to token ids: everything that happens before the upstream is asked."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from baleen.protocol import Encoder, Prompt
from baleen.protocol.replay import ReplayStore
from baleen.protocol.tokenizing import encoder_for
from baleen.server.base import Constraint
from baleen.server.config import GatewayConfig
from baleen.server.errors import BadRequestError
from baleen.server.observing.telemetry import Telemetry
from baleen.server.prefix import num_shared
from baleen.server.requests.aside import aside
from baleen.server.requests.ask import Ask
from baleen.server.requests.conversations import (
    CacheBreak,
    Conversations,
    Entry,
    explain_break,
)
from baleen.server.requests.limits import Sampling, check_context, max_tokens_for, sampling_for
from baleen.server.requests.restoring import Restoring


@dataclass(slots=True)
class Prepared:
    """A request, encoded."""

    ask: Ask
    prompt: Prompt
    ids: array[int]
    max_tokens: int
    sampling: Sampling
    constraint: Constraint | None
    context_tokens: int
    before: Entry | None = None
    """The answered prompt that this one goes on from."""
    num_reasoning_restored: int = 0
    cache_break: CacheBreak | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What is known before the answer begins."""
        found = {"x-baleen-prompt-tokens": str(len(self.ids))}
        if self.num_reasoning_restored:
            found["x-baleen-reasoning-restored"] = str(self.num_reasoning_restored)
        if self.cache_break is not None:
            found["x-baleen-cache-break"] = str(self.cache_break)
        return found


class Preparer:
    """Encodes requests for one model."""

    def __init__(
        self,
        config: GatewayConfig,
        tokenizer: Any,
        store: ReplayStore,
        conversations: Conversations,
        telemetry: Telemetry,
    ) -> None:
        self.encoder = Encoder(config.revision, config.flavor)
        self._config, self._tokenizer, self._store = config, tokenizer, store
        self._conversations, self._telemetry = conversations, telemetry

    async def prepare(self, ask: Ask, context_tokens: int) -> Prepared:
        """Encode a request and check that it fits.

        Raises:
            ProtocolError: messages or tools that no prompt can be made of.
            BadRequestError: it does not fit the context.
        """
        restoring = Restoring(self._store, ask.scope, thinking=ask.thinking)
        before = self._conversations.find(ask)
        prompt = self._encode(ask, before, restoring)
        self._check_reasoning(restoring)
        ids = await self._ids(prompt, before)
        check_context(ask, len(ids), context_tokens)
        prepared = Prepared(
            ask=ask,
            prompt=prompt,
            ids=ids,
            max_tokens=max_tokens_for(ask, len(ids), context_tokens),
            sampling=sampling_for(ask, self._config),
            constraint=self._constraint(ask, prompt),
            context_tokens=context_tokens,
            before=before,
            num_reasoning_restored=restoring.num_reasoning_restored,
        )
        self._compare(prepared, restoring)
        return prepared

    def _encode(self, ask: Ask, before: Entry | None, restoring: Restoring) -> Prompt:
        if before is not None and _goes_on(ask, before):
            new = ask.messages[len(before.messages) :]
            return self.encoder.extend(before.prompt, new, restore=restoring)
        return self.encoder.encode(
            ask.messages, **ask.options, continue_final=ask.continues, restore=restoring
        )

    async def _ids(self, prompt: Prompt, before: Entry | None) -> array[int]:
        """Ids of a prompt; those of a prompt that it goes on from are copied, not made again."""
        num_chars = sum(len(text) for text, _ in prompt.new_segments)
        if before is not None and prompt.parent is before.prompt:
            encode = encoder_for(self._tokenizer).encode
            new = await aside(num_chars, lambda: encode(prompt.new_segments, prompt.sampled))
            return before.ids[: before.num_prompt] + array("I", new)
        return array("I", await aside(num_chars, lambda: prompt.token_ids(self._tokenizer)))

    def _check_reasoning(self, restoring: Restoring) -> None:
        telemetry = self._telemetry
        telemetry.replayed.add(restoring.num_replayed)
        telemetry.edited.add(restoring.num_edited)
        telemetry.restored.add(restoring.num_reasoning_restored)
        if restoring.failed:
            telemetry.store_errors.add()
        if not restoring.missing:
            return
        if self._config.rejects_missing_reasoning:
            raise BadRequestError(
                "The `reasoning_content` in the thinking mode must be passed back to the API."
            )
        telemetry.missing.add(len(restoring.missing))

    def _constraint(self, ask: Ask, prompt: Prompt) -> Constraint | None:
        if not self._config.uses_grammar:
            return None
        tools = ask.options["tools"] if ask.shows_tools else None
        if not tools and ask.form is None:
            return None
        return Constraint(
            tools=tools or (),
            choice=ask.options["tool_choice"] if tools else "none",
            parallel=ask.parallel,
            form=ask.form,
            thinking=prompt.thinking and prompt.start in (None, "reasoning"),
            in_block=prompt.start == "calls",
        )

    def _compare(self, prepared: Prepared, restoring: Restoring) -> None:
        """Say how much of what was computed before the new prompt begins with."""
        before = prepared.before
        if before is None:
            return
        reusable = len(before.ids)
        # What a prompt goes on from it begins with, so only what lies behind needs comparing.
        known = before.num_prompt if prepared.prompt.parent is before.prompt else 0
        reused = known + num_shared(before.ids[known:], prepared.ids[known:])
        self._telemetry.reusable.add(reusable)
        self._telemetry.reused.add(reused)
        if reused < reusable:
            found = explain_break(
                before,
                prepared.ask,
                prepared.prompt,
                was_kept=restoring.num_edited > 0,
                lost_reasoning=bool(restoring.missing),
            )
            prepared.cache_break = found
            self._telemetry.breaks.add(1, found.kind)


def _goes_on(ask: Ask, before: Entry) -> bool:
    known = len(before.messages)
    return (
        not ask.continues
        and len(ask.messages) > known
        and ask.options == before.options
        and ask.messages[:known] == before.messages
    )
