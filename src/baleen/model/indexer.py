"""The lightning indexer of a CSA layer: scores every block cheaply, keeps the best for attention.

Source: DeepSeek-V3.2 report section 2.1, DeepSeek-V4 report section 2.3.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from baleen.cache import OverlapState, Span
from baleen.kernels import Entries, Kind, norm_rotate, select_blocks
from baleen.kernels.packing import hadamard
from baleen.kernels.precision import widen
from baleen.kernels.select import score_blocks
from baleen.model.compressor import Compressor
from baleen.model.config import CSA_RATIO, ModelConfig


class Indexer(nn.Module):
    """score(t, i) = sum_h w_h relu(q_h . k_i); the `topk` highest are attended."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.topk = config.index_topk
        self.wq_b = nn.Linear(config.q_lora_rank, self.heads * self.width, bias=False)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.compressor = Compressor(config, CSA_RATIO, self.width)
        self.quantize: Callable[[Tensor], Tensor] | None = None
        """Rounds queries; the compressor rounds keys, where quantisation is simulated."""

    def absorb(self, x_BTd: Tensor, span: Span, state: OverlapState) -> None:
        """Takes the call's tokens into the indexer's own blocks."""
        self.compressor(x_BTd, span, state)

    def queries(self, x_BTd: Tensor, qr_BTC: Tensor, phases: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, T, H, c] and the fp32 weight of each head [B, T, H]."""
        q_BTHc = self.wq_b(qr_BTC).unflatten(-1, (self.heads, -1))
        weights_BTH = widen(self.weights_proj(x_BTd)) * (self.width * self.heads) ** -0.5
        q_BTHc = norm_rotate(q_BTHc, None, phases, None)
        return q_BTHc if self.quantize is None else self.quantize(q_BTHc), weights_BTH

    def select(
        self, q_BTHc: Tensor, weights_BTH: Tensor, keys: Entries, limits_BT: Tensor
    ) -> Tensor:
        """The chosen blocks, int32 [B, T, K], ascending, then -1."""
        return select_blocks(q_BTHc, weights_BTH, keys, limits_BT, self.topk)

    def scores(self, q_BTHc: Tensor, weights_BTH: Tensor, keys: Entries) -> Tensor:
        """Every block's score, fp32 [B, T, M], with gradients; for training and inspection."""
        if keys.layout.kind is Kind.FP4:
            q_BTHc = hadamard(q_BTHc)
        return score_blocks(q_BTHc, weights_BTH, keys.values())
