"""Token-level compression: m tokens become one block, weighted channel by channel.

m = 4 (CSA): blocks overlap. A token projects to two halves; block i pools the *cur* halves of its
own tokens and the *prev* halves of the block before. m > 4 (HCA): blocks are disjoint, one half
each. Source: DeepSeek-V4 report section 2.3, released inference code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from baleen.cache import DisjointState, OverlapState, Span
from baleen.cache.slots import EMPTY
from baleen.kernels import norm_rotate
from baleen.kernels.precision import widen
from baleen.model.config import CSA_RATIO, ModelConfig
from baleen.model.layers import RMSNorm, rope_phases


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
        self.quantize: Callable[[Tensor], Tensor] | None = None
        """Rounds finished blocks, where quantisation is simulated."""

    def forward(self, x_BTd: Tensor, span: Span, state: OverlapState | DisjointState) -> None:
        """Takes in the call's tokens; appends each block that they complete to `state`."""
        gate = widen(self.wgate(x_BTd)) + widen(self.ape)[span.positions_BT % self.ratio]
        projected_BT2w = torch.stack([widen(self.wkv(x_BTd)), gate], dim=2)
        first_B = span.common_starts // self.ratio
        done_B = (span.starts_B + span.counts_B) // self.ratio - span.starts_B // self.ratio
        most = int(done_B.max())
        if isinstance(state, OverlapState):
            pooled = self._pool_overlapping(projected_BT2w, span, state, first_B, most)
        else:
            pooled = self._pool_disjoint(projected_BT2w, span, state, done_B, most)
        if pooled is None:
            return
        entries = self._finish(pooled, span, first_B).to(x_BTd.dtype)
        if self.quantize is not None:
            entries = self.quantize(entries)
        if span.start is None:
            state.entries.append_ragged(entries, done_B)
        else:
            state.entries.append(entries)

    def _finish(self, pooled_BMc: Tensor, span: Span, first_B: Tensor) -> Tensor:
        """Norm and rotation at each block's first token."""
        key = ("blocks", self.ratio, pooled_BMc.shape[1])
        if key not in span.derived:
            index_BM = first_B.unsqueeze(1) + torch.arange(pooled_BMc.shape[1])
            span.derived[key] = rope_phases(index_BM * self.ratio, self.frequencies)
        pooled_BM1c = pooled_BMc.unsqueeze(2)
        return norm_rotate(pooled_BM1c, self.norm.weight, span.derived[key], self.norm.eps).squeeze(
            2
        )

    def _pool_overlapping(
        self, new_BT2w: Tensor, span: Span, state: OverlapState, first_B: Tensor, most: int
    ) -> Tensor | None:
        """Each block from its own tokens' *cur* halves and the block before's *prev* halves."""
        m, c = self.ratio, self.width
        before = state.pending.before(span, 2 * m - 1)
        state.pending.write(new_BT2w, span)
        if most == 0:
            return None
        joined = torch.cat([before, new_BT2w], dim=1)
        offset_B = (first_B - 1) * m - span.common_starts + 2 * m - 1
        cut_BM2mw = _blocked(joined, offset_B, most + 1, m).transpose(2, 3)
        both = torch.cat([cut_BM2mw[:, :-1, :, :, :c], cut_BM2mw[:, 1:, :, :, c:]], dim=3)
        content_BMnc, gate_BMnc = both.unbind(2)
        pooled: Tensor = (gate_BMnc.softmax(2) * content_BMnc).sum(2)
        return pooled

    def _pool_disjoint(
        self, new_BT2w: Tensor, span: Span, state: DisjointState, done_B: Tensor, most: int
    ) -> Tensor | None:
        """Each block as a running softmax, the first of which goes on where the last call ended."""
        m = self.ratio
        padding = new_BT2w.new_zeros(len(new_BT2w), m - 1, *new_BT2w.shape[2:])
        joined = torch.cat([padding, new_BT2w], dim=1)
        offset_B = m - 1 - span.common_starts % m
        cut_BMm2c = _blocked(joined, offset_B, most + 1, m)
        content, gate = cut_BMm2c.unbind(3)
        token_BMm = offset_B.view(-1, 1, 1) + torch.arange((most + 1) * m).view(1, most + 1, m)
        counts = span.counts_B if span.start is None else span.counts_B[:1]
        real_BMm = (token_BMm >= m - 1) & (token_BMm < m - 1 + counts.view(-1, 1, 1))
        gate = gate.masked_fill(~real_BMm.unsqueeze(-1), -torch.inf)
        held_B3c = state.pending.data
        past = held_B3c[:, 0].unsqueeze(1)
        past = torch.cat([past, torch.full_like(gate[:, 1:, 0], EMPTY)], dim=1)
        peak = torch.maximum(gate.amax(2), past)
        share = torch.exp(gate - peak.unsqueeze(2))
        total, mixed = share.sum(2), (share * content).sum(2)
        kept = torch.exp(past[:, :1] - peak[:, :1])
        first_total = total[:, :1] + kept * held_B3c[:, 1:2]
        first_mixed = mixed[:, :1] + kept * held_B3c[:, 2:3]
        total = torch.cat([first_total, total[:, 1:]], dim=1)
        mixed = torch.cat([first_mixed, mixed[:, 1:]], dim=1)
        # what follows the last finished block is the new running softmax
        rows = torch.arange(len(done_B))
        state.pending.replace(torch.stack([part[rows, done_B] for part in (peak, total, mixed)], 1))
        return mixed[:, :most] / total[:, :most] if most else None


def _blocked(joined_BS2w: Tensor, offset_B: Tensor, blocks: int, size: int) -> Tensor:
    """`blocks` runs of `size` tokens from `offset` on, [B, blocks, size, 2, w].

    What lies behind the end repeats the last token, to be masked or left unread by the caller.
    """
    index_BS = offset_B.unsqueeze(1) + torch.arange(blocks * size)
    index_BS = index_BS.clamp(max=joined_BS2w.shape[1] - 1)
    if len(index_BS) == 1:
        cut = joined_BS2w[:, index_BS[0]]
    else:
        cut = joined_BS2w[torch.arange(len(joined_BS2w)).unsqueeze(1), index_BS]
    runs: Tensor = cut.unflatten(1, (blocks, size))
    return runs
