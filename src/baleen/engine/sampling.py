"""From logits to a token. The draw at a position depends on (seed, position) and nothing else, so a
conversation that was interrupted and resumed goes on with the tokens it would have had."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to stop."""

    temperature: float = 0.0
    """0 takes the likeliest token, the lowest id among equals."""
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 512
    min_tokens: int = 0
    """End-of-sentence is not drawn before as many tokens."""
    num_top: int = 0
    """How many of the likeliest tokens are told with each."""


class Allowed(Protocol):
    """A set of tokens: only `ids`, or all but them."""

    @property
    def ids(self) -> frozenset[int]: ...

    @property
    def is_allowed(self) -> bool: ...


class Tokens(NamedTuple):
    """The plain form of such a set."""

    ids: frozenset[int]
    is_allowed: bool


class Guide(Protocol):
    """Says before each token which ones may come; `baleen.protocol.grammar.CallMask` is one."""

    @property
    def is_free(self) -> bool:
        """Whether anything may come."""
        ...

    def mask(self) -> Allowed:
        """What may come next."""
        ...

    def accept(self, number: int) -> bool:
        """Go on with a token; False if it could not come."""
        ...


class SampledToken(NamedTuple):
    """A token and its log-probability in the distribution it was drawn from (at 0: unscaled)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, the likeliest first."""


def uniform(seed: int | str, position: int) -> float:
    """The random number in [0, 1) of one position of one sample."""
    return random.Random(f"{seed}|{position}").random()


def pick(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the cumulative distribution: ids int64 [B], log-probs [B]."""
    if sampling.temperature == 0.0:
        logprobs_BV = logits_BV.log_softmax(-1)
        ids_B = logits_BV.argmax(-1)
    else:
        logprobs_BV = (logits_BV / sampling.temperature).log_softmax(-1)
        if sampling.top_p < 1.0:
            logprobs_BV = _nucleus(logprobs_BV, sampling.top_p)
        cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
        threshold_B1 = (uniform_B.double() * cumulative_BV[:, -1]).unsqueeze(-1)
        ids_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)
        ids_B = ids_B.clamp(max=logits_BV.shape[-1] - 1)
    return ids_B, logprobs_BV.gather(-1, ids_B.unsqueeze(-1)).squeeze(-1)


def likeliest(logits_BV: Tensor, sampling: Sampling) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of the only row, in the distribution that :func:`pick` draws from."""
    scale = sampling.temperature or 1.0
    logprobs_BV = (logits_BV / scale).log_softmax(-1)
    if sampling.temperature and sampling.top_p < 1.0:
        logprobs_BV = _nucleus(logprobs_BV, sampling.top_p)
    values, ids = logprobs_BV[0].topk(min(sampling.num_top, logits_BV.shape[-1]))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple((number, logprob) for number, logprob in pairs if logprob > -torch.inf)


def hold(logits_BV: Tensor, allowed: Allowed) -> Tensor:
    """Logits with those of the other tokens at minus infinity."""
    ids = _tensor_of(allowed.ids)
    if not allowed.is_allowed:
        return logits_BV.index_fill(-1, ids, -torch.inf)
    held_BV = torch.full_like(logits_BV, -torch.inf)
    held_BV[:, ids] = logits_BV[:, ids]
    return held_BV


@lru_cache(maxsize=256)
def _tensor_of(ids: frozenset[int]) -> Tensor:
    """Masks come again with each call; a large vocabulary takes milliseconds to list."""
    return torch.tensor(sorted(ids), dtype=torch.int64)


def _nucleus(logprobs_BV: Tensor, top_p: float) -> Tensor:
    """Renormalised over the fewest tokens that together hold `top_p`."""
    ordered, order = logprobs_BV.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter_(-1, order, before >= top_p)
    return logprobs_BV.masked_fill(dropped, -torch.inf).log_softmax(-1)
