"""Hybrid compressed attention: an exact window and compressed blocks under one softmax.

One latent per token is key and value of every head. The softmax's denominator also holds a learned
sink per head, realised here as a zero key whose logit is the sink: it takes weight and adds
nothing. Source: DeepSeek-V4 report section 2.3; released inference code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from baleen.cache import LayerState, Span
from baleen.cache.state import last_tokens
from baleen.model.compressor import Compressor
from baleen.model.config import LayerKind, ModelConfig
from baleen.model.indexer import Indexer
from baleen.model.layers import (
    RMSNorm,
    rms_normalize,
    rope_frequencies,
    rope_phases,
    rotate_tail,
)
from baleen.model.trace import Trace


class Attention(nn.Module):
    """Attention of one layer; what it sees beyond the window depends on the layer's kind."""

    frequencies: Tensor
    """fp64 [R/2]; a plain attribute, so that no cast of the model rounds it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.kind = config, layer, config.layer_kind(layer)
        self.ratio = config.compress_ratios[layer]
        d, c, heads = config.hidden_size, config.head_dim, config.num_attention_heads
        self.heads, self.width, self.groups = heads, c, config.o_groups
        self.wq_a = nn.Linear(d, config.q_lora_rank, bias=False)
        self.q_norm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.wq_b = nn.Linear(config.q_lora_rank, heads * c, bias=False)
        self.wkv = nn.Linear(d, c, bias=False)
        self.kv_norm = RMSNorm(c, config.rms_norm_eps)
        self.attn_sink = nn.Parameter(torch.zeros(heads))
        self.wo_a = nn.Linear(config.group_width, config.o_groups * config.o_lora_rank, bias=False)
        self.wo_b = nn.Linear(config.o_groups * config.o_lora_rank, d, bias=False)
        self.compressor: Compressor | None = None
        self.indexer: Indexer | None = None
        if self.kind is not LayerKind.SWA:
            self.compressor = Compressor(config, self.ratio, c)
        if self.kind is LayerKind.CSA:
            self.indexer = Indexer(config)
        self.set_frequencies(config)
        self.sees_blocks = True
        """Off only in ablations: the layer then attends its window alone."""

    def set_frequencies(self, config: ModelConfig) -> None:
        """(Re)computes the rotary frequencies, which are derived and so in no checkpoint."""
        if self.kind is LayerKind.SWA:
            theta, scaling = config.rope_theta, None
        else:
            theta, scaling = config.compress_rope_theta, config.rope_scaling
        frequencies = rope_frequencies(config.qk_rope_head_dim, theta, scaling)
        for module in (self, self.compressor, self.indexer and self.indexer.compressor):
            if module is not None:
                module.frequencies = frequencies

    def forward(self, x_BTd: Tensor, span: Span, state: LayerState, trace: Trace | None) -> Tensor:
        phases = rope_phases(span.positions_BT, self.frequencies)
        qr_BTC = self.q_norm(self.wq_a(x_BTd))
        q_BTHc = self.wq_b(qr_BTC).unflatten(-1, (self.heads, self.width))
        q_BTHc = rms_normalize(q_BTHc, self.config.rms_norm_eps)
        q_BTHc = rotate_tail(q_BTHc, phases.unsqueeze(-2))
        kv_BTc = rotate_tail(self.kv_norm(self.wkv(x_BTd)), phases).to(state.window.dtype)
        # blocks first: a query sees the block that its own token completes
        blocks_BMc, allowed_BTM = self._blocks(x_BTd, qr_BTC, span, state, phases, trace)
        window_BSc = torch.cat([state.window, kv_BTc], dim=1)
        state.window = last_tokens(window_BSc, span, state.window.shape[1])
        keys = torch.cat([torch.zeros_like(kv_BTc[:, :1]), window_BSc, blocks_BMc], dim=1).float()
        allowed = self._allowed(span, window_BSc.shape[1], allowed_BTM)
        o_BTHc = self._attend(q_BTHc, keys, allowed)
        if trace is not None and trace.teaches_indexer and self.indexer is not None:
            weights = self._block_weights(q_BTHc, keys, allowed, blocks_BMc.shape[1])
            trace.attended(self.layer, weights)
        return self._project(rotate_tail(o_BTHc, phases.conj().unsqueeze(-2)).to(x_BTd.dtype))

    def _blocks(
        self,
        x_BTd: Tensor,
        qr_BTC: Tensor,
        span: Span,
        state: LayerState,
        phases: Tensor,
        trace: Trace | None,
    ) -> tuple[Tensor, Tensor]:
        """This layer's blocks [B, M, c] and which of them each query attends, [B or 1, T, M]."""
        if self.compressor is None or state.compressor is None:
            empty = x_BTd.new_zeros(x_BTd.shape[0], 0, self.width, dtype=state.window.dtype)
            return empty, torch.ones(1, span.width, 0, dtype=torch.bool)
        self.compressor(x_BTd, span, state.compressor)
        blocks = state.compressor.entries.values_BMw
        complete_BT = (span.positions_BT + 1) // self.ratio
        visible_BTM = torch.arange(blocks.shape[1]) < complete_BT.unsqueeze(-1)
        if self.indexer is None or state.indexer is None:
            chosen = visible_BTM
        else:
            chosen = self._choose(x_BTd, qr_BTC, span, state, phases, visible_BTM, trace)
        return blocks, chosen if self.sees_blocks else torch.zeros_like(chosen)

    def _choose(
        self,
        x_BTd: Tensor,
        qr_BTC: Tensor,
        span: Span,
        state: LayerState,
        phases: Tensor,
        visible_BTM: Tensor,
        trace: Trace | None,
    ) -> Tensor:
        assert self.indexer is not None
        assert state.indexer is not None, "the state was made for another schedule"
        if trace is not None and trace.teaches_indexer:
            # the indexer learns from the attention, and the attention never from the indexer
            x_BTd, qr_BTC = x_BTd.detach(), qr_BTC.detach()
        self.indexer.absorb(x_BTd, span, state.indexer)
        keys = state.indexer.entries.values_BMw
        if keys.shape[1] <= self.indexer.topk and trace is None:
            return visible_BTM  # everything is kept, so there is nothing to score
        scores = self.indexer.scores(x_BTd, qr_BTC, keys, phases.unsqueeze(-2))
        chosen = self.indexer.choose(scores.detach(), visible_BTM)
        if trace is not None:
            trace.scored(self.layer, scores, chosen)
        return chosen

    def _allowed(self, span: Span, num_window: int, blocks_BTM: Tensor) -> Tensor:
        """[B or 1, T, 1 + S + M]: the sink always, the window by distance, blocks as chosen."""
        held = num_window - span.width
        query_T1 = torch.arange(span.width).unsqueeze(1)
        key_S = torch.arange(num_window) - held  # relative to the call's first token
        near_TS = (key_S <= query_T1) & (key_S > query_T1 - held - 1)
        starts = span.starts_B if span.start is None else span.starts_B[:1]
        window_BTS = near_TS & (starts.unsqueeze(1) + key_S >= 0).unsqueeze(1)
        batch = max(len(window_BTS), len(blocks_BTM))
        sink = torch.ones(1, 1, 1, dtype=torch.bool).expand(batch, span.width, 1)
        parts = [sink, *(part.expand(batch, -1, -1) for part in (window_BTS, blocks_BTM))]
        return torch.cat(parts, dim=-1)

    def _attend(self, q_BTHc: Tensor, keys_BSc: Tensor, allowed_BTS: Tensor) -> Tensor:
        """softmax(q k / sqrt(c)) k over the allowed keys, with the sink in the denominator.

        The sink rides in one more dimension: queries carry their head's sink there, and only key 0,
        which is zero elsewhere, answers with 1. So its logit is the sink, unscaled, its value is 0,
        and a plain fused kernel does the rest.
        """
        queries, keys = self._with_sink(q_BTHc, keys_BSc)
        mask = allowed_BTS.unsqueeze(2).expand(-1, -1, self.heads, -1).flatten(1, 2)
        out = nn.functional.scaled_dot_product_attention(
            queries.unsqueeze(1), keys.unsqueeze(1), keys.unsqueeze(1), mask.unsqueeze(1), scale=1.0
        )
        o_BTHc: Tensor = out.squeeze(1)[..., : self.width].unflatten(1, (-1, self.heads))
        return o_BTHc

    def _with_sink(self, q_BTHc: Tensor, keys_BSc: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries [B, T*H, c + pad] and keys [B, S, c + pad], the sink's dimension first in
        the padding; the rest keeps rows aligned for vector loads."""
        pad = 8
        sink_H1 = self.attn_sink.float().unsqueeze(1)
        sink = nn.functional.pad(sink_H1, (0, pad - 1)).expand(*q_BTHc.shape[:2], -1, -1)
        queries = torch.cat([q_BTHc / math.sqrt(self.width), sink], dim=-1).flatten(1, 2)
        keys = nn.functional.pad(keys_BSc, (0, pad))
        keys[:, 0, self.width] = 1.0
        return queries, keys

    @torch.no_grad()
    def _block_weights(
        self, q_BTHc: Tensor, keys_BSc: Tensor, allowed_BTS: Tensor, blocks: int
    ) -> Tensor:
        """The joint softmax's weights on the blocks, [B, T, H, M], for the indexer's lesson."""
        queries, keys = self._with_sink(q_BTHc, keys_BSc)
        logits = (queries @ keys.transpose(1, 2)).unflatten(1, (-1, self.heads))
        weights: Tensor = logits.masked_fill_(~allowed_BTS.unsqueeze(2), -torch.inf).softmax(-1)
        return weights[..., weights.shape[-1] - blocks :]

    def _project(self, o_BTHc: Tensor) -> Tensor:
        """Grouped low-rank output: each group of heads through its own wo_a, all through wo_b."""
        grouped_gLw = (
            o_BTHc.flatten(-2).unflatten(-1, (self.groups, -1)).flatten(0, 1).transpose(0, 1)
        )
        wo_a_gwr = self.wo_a.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        low_gLr = grouped_gLw @ wo_a_gwr
        low_BTgr = low_gLr.transpose(0, 1).unflatten(0, o_BTHc.shape[:2])
        out: Tensor = self.wo_b(low_BTgr.flatten(-2))
        return out
