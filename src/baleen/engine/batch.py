"""Many conversations behind one prefix, decoded together: what rollouts run on.

The prefix is computed once and forked. Rows may be at different lengths and finish at different
times; a row's tokens do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from baleen.engine.sampling import Sampling, pick, uniform
from baleen.model import Transformer


class Completion(NamedTuple):
    """One turn's sampled tokens, end-of-sentence included if it was reached."""

    token_ids: list[int]
    logprobs: list[float]


class Batch:
    """`rows` conversations; row r draws its random numbers from `seeds[r]`."""

    @torch.no_grad()
    def __init__(
        self, model: Transformer, prefix: Sequence[int], seeds: Sequence[int | str]
    ) -> None:
        self.model, self.seeds = model, list(seeds)
        state = model.new_state(1)
        model.hidden(torch.tensor([list(prefix)]), state)
        self.state = state.select(torch.zeros(len(seeds), dtype=torch.int64))
        self._unfed: list[list[int]] = [[] for _ in seeds]
        """Per row a sampled token that the state has not seen yet."""

    @torch.no_grad()
    def generate(
        self, new_ids: Sequence[Sequence[int] | None], sampling: Sampling
    ) -> list[Completion]:
        """Feeds each row its new tokens and samples its next turn; a row given None rests."""
        active = torch.tensor([ids is not None for ids in new_ids])
        done = [Completion([], []) for _ in new_ids]
        rows = [
            [*unfed, *ids] if ids is not None else []
            for unfed, ids in zip(self._unfed, new_ids, strict=True)
        ]
        logits_BV = self._feed(rows)
        for _ in range(sampling.max_tokens):
            positions = self.state.lengths_B.tolist()
            draws = [uniform(s, p) for s, p in zip(self.seeds, positions, strict=True)]
            ids_B, logprobs_B = pick(logits_BV, sampling, torch.tensor(draws, dtype=torch.float64))
            for row in torch.where(active)[0].tolist():
                token = int(ids_B[row])
                done[row].token_ids.append(token)
                done[row].logprobs.append(float(logprobs_B[row]))
                self._unfed[row] = [token]
            active &= ids_B != self.model.config.eos_token_id
            if (
                not active.any()
                or len(done[int(active.nonzero()[0])].token_ids) == sampling.max_tokens
            ):
                break
            logits_BV = self._step(ids_B, active, logits_BV)
        return done

    def _feed(self, rows: list[list[int]]) -> Tensor:
        """Ragged prefill; logits [B, V] behind each row's last token (rubbish for resting rows)."""
        width = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        counts = torch.tensor([len(row) for row in rows])
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        hidden = self.model.hidden(ids, self.state, counts)
        last = (counts - 1).clamp(min=0)
        return self.model.logits(hidden[torch.arange(len(rows)), last])

    def _step(self, ids_B: Tensor, active: Tensor, logits_BV: Tensor) -> Tensor:
        """One token further in every active row."""
        rows = torch.where(active)[0]
        counts = active.to(torch.int64)
        hidden = self.model.hidden(ids_B.unsqueeze(1), self.state, counts)
        logits_BV[rows] = self.model.logits(hidden[rows, 0])
        return logits_BV
