"""Token-level compression: m tokens become one block, weighted channel by channel.

m = 4 (CSA): blocks overlap. A token projects to two halves; block i pools the *cur* halves of its
own tokens and the *prev* halves of the block before. m > 4 (HCA): blocks are disjoint, one half
each. Source: DeepSeek-V4 report section 2.3, released inference code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baleen.cache import CompressorState, Span
from baleen.model.config import CSA_RATIO, ModelConfig
from baleen.model.layers import RMSNorm, rope_phases, rotate_tail


class Compressor(nn.Module):
    """Makes the blocks of one layer, for the attention or for its indexer."""

    frequencies: Tensor
    """Set by the attention that owns this compressor."""

    def __init__(self, config: ModelConfig, ratio: int, width: int) -> None:
        super().__init__()
        self.ratio, self.width = ratio, width
        self.halves = 2 if ratio == CSA_RATIO else 1
        self.wkv = nn.Linear(config.hidden_size, self.halves * width, bias=False)
        self.wgate = nn.Linear(config.hidden_size, self.halves * width, bias=False)
        self.ape = nn.Parameter(torch.zeros(ratio, self.halves * width))
        self.norm = RMSNorm(width, config.rms_norm_eps)

    def forward(self, x_BTd: Tensor, span: Span, state: CompressorState) -> None:
        """Takes in the call's tokens; appends each block that they complete to `state`."""
        gate = self.wgate(x_BTd).float() + self.ape[span.positions_BT % self.ratio]
        joined = state.advance(torch.cat([self.wkv(x_BTd).float(), gate], dim=-1), span)
        ends_B = span.starts_B + span.counts_B
        first_B = span.starts_B // self.ratio
        done_B = ends_B // self.ratio - first_B
        most = int(done_B.max())
        if most == 0:
            return
        cut = self._cut(joined, span, first_B, most)
        index_BM = (first_B if span.start is None else first_B[:1]).unsqueeze(1) + torch.arange(
            most
        )
        phases = rope_phases(index_BM * self.ratio, self.frequencies)
        entries = rotate_tail(self.norm(self._pool(cut)).to(x_BTd.dtype), phases)
        if span.start is None:
            state.entries.append_ragged(entries, done_B)
        else:
            state.entries.append(entries)

    def _cut(self, joined_BSw: Tensor, span: Span, first_B: Tensor, most: int) -> Tensor:
        """The tokens of blocks first .. first + most - 1 as [B, most, m, w]; one block more, at the
        front, where blocks overlap. A row with fewer finished blocks gets rubbish behind them."""
        m = self.ratio
        tail = joined_BSw.shape[1] - span.width
        blocks = most + self.halves - 1
        offset_B = first_B * m - span.starts_B + tail - (self.halves - 1) * m
        if span.start is not None:
            offset = int(offset_B[0])
            cut = joined_BSw[:, offset : offset + blocks * m]
        else:
            index = (offset_B.unsqueeze(1) + torch.arange(blocks * m)).clamp(
                max=joined_BSw.shape[1] - 1
            )
            cut = joined_BSw[torch.arange(len(joined_BSw)).unsqueeze(1), index]
        blocked: Tensor = cut.unflatten(1, (blocks, m))
        return blocked

    def _pool(self, cut_BMmw: Tensor) -> Tensor:
        """Softmax over a block's tokens, per channel, then the weighted sum of their contents."""
        c = self.width
        content, gate = cut_BMmw.split(self.halves * c, dim=-1)
        if self.halves == 2:
            content = torch.cat([content[:, :-1, :, :c], content[:, 1:, :, c:]], dim=2)
            gate = torch.cat([gate[:, :-1, :, :c], gate[:, 1:, :, c:]], dim=2)
        pooled: Tensor = (gate.softmax(2) * content).sum(2)
        return pooled
