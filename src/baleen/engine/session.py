"""One conversation: its tokens, the model's state after them, and the generation of more."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from baleen.cache import Mark
from baleen.engine.sampling import (
    Guide,
    SampledToken,
    Sampling,
    Tokens,
    hold,
    likeliest,
    pick,
    uniform,
)
from baleen.errors import ConfigError, UsageError
from baleen.model import Transformer

_SCORED_AT_ONCE = 256
"""Tokens whose logits are in memory at a time; a large vocabulary has half a megabyte for each."""


class Session:
    """The tokens that the state holds, and how many of each prompt had to be computed.

    A sampled token enters the state when the next one is asked for, so the last token of a turn is
    computed with the following prompt.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.token_ids: list[int] = []
        self.prefilled_tokens = 0
        """Prompt tokens that went through the model, in all turns together."""
        self.reused_tokens = 0
        """Prompt tokens that were already in the state."""
        self._state = model.new_state(1)
        self._marks: list[tuple[int, Mark]] = [(0, self._state.mark())]

    @torch.no_grad()
    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, guide: Guide | None = None
    ) -> Iterator[SampledToken]:
        """Continues `prompt_ids`; ends behind the end-of-sentence token or `max_tokens`.

        Of the prompt, only what lies behind the longest prefix that the state can return to is
        computed. With a `guide` only tokens are drawn that it allows, and their log-probabilities
        are those among the allowed.
        """
        if not prompt_ids:
            raise UsageError("the prompt is empty; it needs at least one token")
        self._rewind(prompt_ids)
        held = len(self.token_ids)
        self.reused_tokens += held
        self.prefilled_tokens += len(prompt_ids) - held
        logits = self._prefill(prompt_ids[held:])
        self._marks.append((len(self.token_ids), self._state.mark()))
        yield from self._continue(logits, sampling, guide)

    def _continue(
        self, logits: torch.Tensor, sampling: Sampling, guide: Guide | None
    ) -> Iterator[SampledToken]:
        """Samples on from the logits [1, V] behind the prompt."""
        eos = self.model.config.eos_token_id
        without_eos = Tokens(frozenset({eos}), is_allowed=False)
        for count in range(sampling.max_tokens):
            if guide is not None and not guide.is_free:
                logits = hold(logits, guide.mask())
            if count < sampling.min_tokens:
                logits = hold(logits, without_eos)
            draw = torch.tensor([uniform(sampling.seed, len(self.token_ids))], dtype=torch.float64)
            ids, logprobs = pick(logits, sampling, draw)
            top = likeliest(logits, sampling) if sampling.num_top else ()
            token = SampledToken(int(ids), float(logprobs), top)
            if guide is not None and not guide.accept(token.id):
                raise ConfigError(
                    f"the guide does not know token {token.id}, which the model has drawn",
                    remedy="make it for the vocabulary of this model",
                )
            yield token
            if token.id == eos or count + 1 == sampling.max_tokens:
                return
            logits = self._feed([token.id])

    @torch.no_grad()
    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of each token given those before it; that of the first is not a number.

        The whole text is computed, in a state of its own: this conversation stays as it is.
        """
        state, found = self.model.new_state(1), [math.nan]
        for start in range(0, len(token_ids) - 1, _SCORED_AT_ONCE):
            stop = min(start + _SCORED_AT_ONCE, len(token_ids) - 1)
            logits_1TV = self.model(torch.tensor([token_ids[start:stop]]), state)
            following_T1 = torch.tensor(token_ids[start + 1 : stop + 1]).unsqueeze(-1)
            logprobs_T1 = logits_1TV[0].log_softmax(-1).gather(-1, following_T1)
            found += logprobs_T1.squeeze(-1).tolist()
        return found

    @property
    def cache_bytes(self) -> int:
        """Bytes of this conversation's state, as allocated."""
        return self._state.nbytes

    @property
    def gqa8_cache_bytes(self) -> int:
        """What a plain cache of the same depth would take for these tokens: keys and values of
        eight bf16 heads of this model's head width in every layer."""
        config = self.model.config
        return len(self.token_ids) * config.num_hidden_layers * 2 * 8 * config.head_dim * 2

    def save(self, path: str | Path) -> None:
        """Writes state and tokens to a file, atomically."""
        self._state.save(path, {"token_ids": json.dumps(self.token_ids)})

    def load(self, path: str | Path) -> None:
        """Takes over what `save` wrote for the same model.

        Raises:
            ConfigError: the file is damaged or belongs to another model; the session is unchanged.
        """
        state = self.model.new_state(1)
        try:
            token_ids = json.loads(state.load(path)["token_ids"])
        except ConfigError:
            raise
        except Exception as error:  # safetensors, JSON and OS errors alike mean: no usable file
            raise ConfigError(f"{path} cannot be loaded: {error}") from error
        if int(state.lengths_B[0]) != len(token_ids):
            raise ConfigError(f"{path}: state and tokens disagree about their length")
        self._state, self.token_ids = state, token_ids
        empty = self.model.new_state(1).mark()
        self._marks = [(0, empty), (len(token_ids), state.mark())]

    def _prefill(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Takes the new part of a prompt into the state; returns the logits [1, V] behind it."""
        return self._feed(token_ids)

    def _feed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Takes tokens into the state; returns the logits [1, V] behind the last."""
        logits: torch.Tensor = self.model(torch.tensor([token_ids]), self._state, logits_to_keep=1)
        self.token_ids.extend(token_ids)
        return logits[:, -1]

    def _rewind(self, prompt_ids: Sequence[int]) -> None:
        """Returns to the last marked point that the prompt shares and goes beyond."""
        shared = 0
        for mine, wanted in zip(self.token_ids, prompt_ids[:-1], strict=False):
            if mine != wanted:
                break
            shared += 1
        if shared == len(self.token_ids):
            return
        while self._marks[-1][0] > shared:
            self._marks.pop()
        length, mark = self._marks[-1]
        self._state.rollback(mark)
        del self.token_ids[length:]
