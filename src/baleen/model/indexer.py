"""The lightning indexer of a CSA layer: scores every block cheaply, keeps the best for attention.

Source: DeepSeek-V3.2 report section 2.1, DeepSeek-V4 report section 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baleen.cache import CompressorState, Span
from baleen.model.compressor import Compressor
from baleen.model.config import CSA_RATIO, ModelConfig
from baleen.model.layers import rotate_tail

SCORE_ELEMENTS = 1 << 24
"""At most so many head scores at once (64 MiB of fp32); more queries are scored in turns."""


class Indexer(nn.Module):
    """score(t, i) = sum_h w_h relu(q_h . k_i); the `topk` highest are attended."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.topk = config.index_topk
        self.wq_b = nn.Linear(config.q_lora_rank, self.heads * self.width, bias=False)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.compressor = Compressor(config, CSA_RATIO, self.width)

    def scores(self, x_BTd: Tensor, qr_BTC: Tensor, keys_BMc: Tensor, phases: Tensor) -> Tensor:
        """fp32 [B, T, M]; a block that a query may not see has a score all the same."""
        q_BTHc = rotate_tail(self.wq_b(qr_BTC).unflatten(-1, (self.heads, -1)), phases)
        weights_BTH = self.weights_proj(x_BTd).float() * (self.width * self.heads) ** -0.5
        keys_BcM = keys_BMc.float().transpose(1, 2)
        step = max(1, SCORE_ELEMENTS // max(1, q_BTHc.shape[0] * self.heads * keys_BMc.shape[1]))
        parts = [
            self._score(q.float(), w, keys_BcM)
            for q, w in zip(q_BTHc.split(step, 1), weights_BTH.split(step, 1), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _score(self, q_BTHc: Tensor, weights_BTH: Tensor, keys_BcM: Tensor) -> Tensor:
        dots = (q_BTHc.flatten(1, 2) @ keys_BcM).unflatten(1, (-1, self.heads)).relu()
        scores: Tensor = (weights_BTH.unsqueeze(-2) @ dots).squeeze(-2)
        return scores

    def choose(self, scores_BTM: Tensor, visible_BTM: Tensor) -> Tensor:
        """The `topk` best visible blocks as a bool mask [B, T, M].

        The order is total, score descending and then lowest block first, and sees nothing but this
        query's visible blocks; so prefill, chunks, decode and any batch choose the same set.
        """
        if scores_BTM.shape[-1] <= self.topk:
            return visible_BTM.expand_as(scores_BTM)
        ranked = (scores_BTM + 0.0).masked_fill(~visible_BTM, -torch.inf)
        if torch.isnan(ranked).any():
            raise FloatingPointError("indexer scores hold NaN; the weights or inputs are broken")
        best = ranked.sort(dim=-1, descending=True, stable=True).indices[..., : self.topk]
        chosen = torch.zeros_like(ranked, dtype=torch.bool).scatter_(-1, best, True)
        return chosen & visible_BTM

    def absorb(self, x_BTd: Tensor, span: Span, state: CompressorState) -> None:
        """Takes the call's tokens into the indexer's own blocks."""
        self.compressor(x_BTd, span, state)
