"""Hybrid compressed attention: an exact window and compressed blocks under one softmax.

One latent per token is key and value of every head. The softmax's denominator also holds a learned
sink per head. Source: DeepSeek-V4 report section 2.3; released inference code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from baleen.cache import LayerState, Span
from baleen.kernels import Blocks, attend, norm_rotate, rotate_back
from baleen.model.compressor import Compressor
from baleen.model.config import LayerKind, ModelConfig
from baleen.model.indexer import Indexer
from baleen.model.layers import RMSNorm, rope_frequencies, rope_phases
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
        self.quantize: Callable[[Tensor], Tensor] | None = None
        """Rounds the latents of the window, where quantisation is simulated."""
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
        phases = self._phases(span)
        qr_BTC = self.q_norm(self.wq_a(x_BTd))
        q_BTHc = self.wq_b(qr_BTC).unflatten(-1, (self.heads, self.width))
        eps = self.config.rms_norm_eps
        q_BTHc = norm_rotate(q_BTHc, None, phases, eps)
        kv_BT1c = norm_rotate(self.wkv(x_BTd).unsqueeze(2), self.kv_norm.weight, phases, eps)
        latent_BTc = kv_BT1c.squeeze(2).to(x_BTd.dtype)
        if self.quantize is not None:
            latent_BTc = self.quantize(latent_BTc)
        kv_BTc = state.window.layout.rounded(latent_BTc)
        # blocks first: a query sees the block that its own token completes
        blocks = self._blocks(x_BTd, qr_BTC, span, state, phases, trace)
        teaches = trace is not None and trace.teaches_indexer and self.indexer is not None
        out, weights_BTHX = attend(
            q_BTHc, self.attn_sink, state.window.view, kv_BTc, span.common_starts, blocks, teaches
        )
        state.window.write(kv_BTc, span)
        if trace is not None and weights_BTHX is not None:
            trace.attended(self.layer, weights_BTHX)
        return self._project(rotate_back(out, phases).to(x_BTd.dtype))

    def _phases(self, span: Span) -> Tensor:
        key = ("tokens", self.kind is LayerKind.SWA)
        if key not in span.derived:
            span.derived[key] = rope_phases(span.positions_BT, self.frequencies)
        return span.derived[key]

    def _blocks(
        self,
        x_BTd: Tensor,
        qr_BTC: Tensor,
        span: Span,
        state: LayerState,
        phases: Tensor,
        trace: Trace | None,
    ) -> Blocks | None:
        """This layer's blocks and which of them each query attends."""
        if self.compressor is None or state.compressor is None:
            return None
        self.compressor(x_BTd, span, state.compressor)
        limits_BT = (span.positions_BT + 1) // self.ratio
        if span.start is None:  # a pad's position may lie beyond its row's blocks
            counts_B = state.compressor.entries.counts_B
            limits_BT = torch.minimum(limits_BT, counts_B.unsqueeze(1))
        picks = None
        if self.indexer is not None:
            picks = self._choose(x_BTd, qr_BTC, span, state, phases, limits_BT, trace)
        if not self.sees_blocks:
            limits_BT, picks = torch.zeros_like(limits_BT), None
        return Blocks(state.compressor.entries.view, limits_BT, picks)

    def _choose(
        self,
        x_BTd: Tensor,
        qr_BTC: Tensor,
        span: Span,
        state: LayerState,
        phases: Tensor,
        limits_BT: Tensor,
        trace: Trace | None,
    ) -> Tensor | None:
        assert self.indexer is not None
        assert state.indexer is not None, "the state was made for another schedule"
        if trace is not None and trace.teaches_indexer:
            # the indexer learns from the attention, and the attention never from the indexer
            x_BTd, qr_BTC = x_BTd.detach(), qr_BTC.detach()
        self.indexer.absorb(x_BTd, span, state.indexer)
        keys = state.indexer.entries.view
        if keys.length <= self.indexer.topk and trace is None:
            return None  # everything is kept, so there is nothing to score
        query = self.indexer.queries(x_BTd, qr_BTC, phases)
        picks = None
        if keys.length > self.indexer.topk:
            picks = self.indexer.select(*query, keys, limits_BT)
        if trace is not None:
            trace.scored(self.layer, self.indexer.scores(*query, keys), limits_BT, picks)
        return picks

    def _project(self, o_BTHc: Tensor) -> Tensor:
        """Grouped low-rank output: each group of heads through its own wo_a, all through wo_b."""
        grouped_gLw = (
            o_BTHc.flatten(-2).unflatten(-1, (self.groups, -1)).flatten(0, 1).transpose(0, 1)
        )
        if isinstance(self.wo_a, nn.Linear):
            wo_a_gwr = self.wo_a.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
            low_gLr = grouped_gLw @ wo_a_gwr
        else:
            low_gLr = self.wo_a.grouped(grouped_gLw)  # in stored form
        low_BTgr = low_gLr.transpose(0, 1).unflatten(0, o_BTHc.shape[:2])
        out: Tensor = self.wo_b(low_BTgr.flatten(-2))
        return out
