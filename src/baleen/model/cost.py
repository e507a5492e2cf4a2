"""What a model costs: parameters, bytes of cache, operations per decoded token; no torch.

Operations are 2 per multiply-add and count one token at the end of a context of N. Letters: d model
width, c head width, H heads, N context. Reference models stand here too, so that every ratio that
was published can be computed instead of quoted.

Source: DeepSeek-V4 report (arXiv 2606.19348) figure 1 and section 2; DeepSeek-V3.2 report.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from baleen.model.config import ModelConfig

FP8_TILE = 64
"""Numbers of a cached entry under one scale."""
FP4_BLOCK = 32
ACCUMULATOR_BYTES = 4


class Rule(StrEnum):
    """How operations of different precision are added up."""

    RAW = "raw"
    """All alike."""
    FP4_INDEXER = "fp4 indexer"
    """V4's indexer multiplies in FP4: half."""
    EQUIVALENT_FP8 = "equivalent fp8"
    """As published: core attention runs in BF16 and counts twice, V4's indexer half."""
    FP4_EXPERTS = "equivalent fp8, fp4 experts"
    """The same, and V4's routed experts half."""


class Flops(NamedTuple):
    """Operations of one decoded token, by part."""

    linear: float
    """Projections of the attention and of its indexer."""
    compressor: float
    indexer: float
    """Scoring of the blocks (V3.2: of the tokens)."""
    attention: float
    """Scores and weighted sums over the attended keys."""
    routed_experts: float
    shared_experts: float
    """With the router; V3.2's dense layers too."""
    streams: float
    """Hyper-connections."""
    head: float

    @property
    def total(self) -> float:
        return sum(self)

    def weighted(self, *, attention: float = 1, indexer: float = 1, routed: float = 1) -> float:
        extra = (attention - 1) * self.attention + (indexer - 1) * self.indexer
        return self.total + extra + (routed - 1) * self.routed_experts


class CacheBytes(NamedTuple):
    """Bytes that one sequence keeps."""

    window: int
    blocks: int
    """Compressed entries, those of the indexer aside."""
    indexer: int
    state: int
    """Half-built blocks: fixed, whatever the length."""

    @property
    def entries(self) -> int:
        """Window, blocks and indexer: what published comparisons count."""
        return self.window + self.blocks + self.indexer

    @property
    def total(self) -> int:
        return self.entries + self.state


class Parameters(NamedTuple):
    """Numbers in the weights; routing tables and the draft block are not among the first two."""

    total: int
    active: int
    """Taken by one token: the head, not the embedding, and the experts that it is sent to."""
    draft: int
    """The MTP block, 0 if there is none."""


def flops(config: ModelConfig, context: int) -> Flops:
    """See `ModelConfig.flops`."""
    d, c, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    q, o = config.q_lora_rank, config.o_lora_rank
    projections = d * q + heads * c * q + c * d + heads * c * o + config.o_groups * o * d
    width, streams = config.index_n_heads * config.index_head_dim, config.hc_mult
    linear = compressor = indexer = attention = 0
    for ratio in config.compress_ratios[: config.num_hidden_layers]:
        linear += 2 * projections
        attended = min(config.sliding_window, context)
        if ratio == _CSA:
            compressor += 2 * d * 2 * 2 * (c + config.index_head_dim)
            linear += 2 * (width * q + config.index_n_heads * d)
            indexer += 2 * (context // ratio) * width
            attended += min(config.index_topk, context // ratio)
        elif ratio:
            compressor += 2 * d * 2 * c
            attended += context // ratio
        attention += 4 * c * heads * attended
    layers, expert = config.num_hidden_layers, 6 * d * config.moe_intermediate_size
    mixing = (2 + streams) * streams * streams * d + (streams + streams**2) * d
    return Flops(
        linear,
        compressor,
        indexer,
        attention,
        layers * expert * config.num_experts_per_tok,
        layers * (expert * config.n_shared_experts + 2 * d * config.n_routed_experts),
        layers * 2 * 2 * mixing,
        2 * d * config.vocab_size,
    )


def counted(parts: Flops, rule: Rule, *, is_v4: bool = True) -> float:
    """Operations under a rule; V3.2 has no FP4, so only its attention is weighed."""
    half = 0.5 if is_v4 else 1.0
    if rule is Rule.RAW:
        return parts.total
    if rule is Rule.FP4_INDEXER:
        return parts.weighted(indexer=half)
    if rule is Rule.EQUIVALENT_FP8:
        return parts.weighted(attention=2, indexer=half)
    return parts.weighted(attention=2, indexer=half, routed=half)


def entry_bytes(config: ModelConfig, kind: str) -> int:
    """One cached entry of the window or of the compressed blocks.

    fp8: E4M3 but for the rotary part in BF16, a UE8M0 scale per 64 numbers, scales padded to 8.
    """
    if kind != "fp8":
        return config.head_dim * _WIDTHS[kind]
    scales = -(-config.nope_head_dim // FP8_TILE)
    return config.nope_head_dim + 2 * config.qk_rope_head_dim + -(-scales // 8) * 8


def index_entry_bytes(config: ModelConfig, kind: str) -> int:
    """One key of the indexer; beside fp8 entries it is FP4 with a scale per 32 numbers."""
    if kind != "fp8":
        return config.index_head_dim * _WIDTHS[kind]
    return config.index_head_dim // 2 + -(-config.index_head_dim // FP4_BLOCK)


def cache_bytes(config: ModelConfig, context: int, kind: str = "fp8") -> CacheBytes:
    """See `ModelConfig.cache_bytes`."""
    entry, key = entry_bytes(config, kind), index_entry_bytes(config, kind)
    c, i = config.head_dim, config.index_head_dim
    window = config.num_hidden_layers * min(config.sliding_window, context) * entry
    blocks = indexer = state = 0
    for ratio in config.compress_ratios[: config.num_hidden_layers]:
        if not ratio:
            continue
        blocks += context // ratio * entry
        if ratio == _CSA:
            indexer += context // ratio * key
            state += 2 * ratio * 2 * 2 * (c + i) * ACCUMULATOR_BYTES
        else:
            state += 3 * c * ACCUMULATOR_BYTES
    return CacheBytes(window, blocks, indexer, state)


def parameters(config: ModelConfig) -> Parameters:
    """See `ModelConfig.parameters`."""
    d, v, streams = config.hidden_size, config.vocab_size, config.hc_mult
    backbone = [_layer(config, layer) for layer in range(config.num_hidden_layers)]
    tail = d + streams * streams * d + streams + 1
    expert = 3 * d * config.moe_intermediate_size
    idle = expert * (config.n_routed_experts - config.num_experts_per_tok)
    total = sum(backbone) + tail + 2 * v * d
    active = total - v * d - idle * config.num_hidden_layers
    draft = 0
    if config.num_nextn_predict_layers:
        draft = _attention(config, 0) + _feed_forward(config, hashed=False) + _sites(config)
        draft += tail + 2 * d * d + 2 * d
    return Parameters(total, active, draft)


def _layer(config: ModelConfig, layer: int) -> int:
    attention = _attention(config, config.compress_ratios[layer])
    return attention + _feed_forward(config, config.is_hash_layer(layer)) + _sites(config)


def _attention(config: ModelConfig, ratio: int) -> int:
    d, c, heads, q = (
        config.hidden_size,
        config.head_dim,
        config.num_attention_heads,
        config.q_lora_rank,
    )
    count = d * q + q + heads * c * q + c * d + c + heads
    count += heads * c * config.o_lora_rank + config.o_groups * config.o_lora_rank * d
    if ratio:
        count += _compressor(d, c, ratio)
    if ratio == _CSA:
        width = config.index_n_heads * config.index_head_dim
        count += width * q + config.index_n_heads * d
        count += _compressor(d, config.index_head_dim, ratio)
    return count


def _compressor(d: int, width: int, ratio: int) -> int:
    halves = 2 if ratio == _CSA else 1
    return 2 * halves * width * d + ratio * halves * width + width


def _feed_forward(config: ModelConfig, hashed: bool) -> int:
    experts = config.n_routed_experts + config.n_shared_experts
    gate = config.n_routed_experts * config.hidden_size
    bias = 0 if hashed else config.n_routed_experts
    return 3 * config.hidden_size * config.moe_intermediate_size * experts + gate + bias


def _sites(config: ModelConfig) -> int:
    """Both norms and both hyper-connections of a layer."""
    rows = (2 + config.hc_mult) * config.hc_mult
    return 2 * (config.hidden_size + rows * config.hc_mult * config.hidden_size + rows + 3)


@dataclass(frozen=True)
class ReferenceModel:
    """A model of another architecture that V4 is compared with."""

    name: str
    layers: int
    bytes_per_token: int
    """Of cache, in all layers."""

    def cache_bytes(self, context: int) -> int:
        return context * self.bytes_per_token

    def flops(self, context: int) -> Flops | None:
        """Operations of one token; None where only the cache is defined."""
        return v32_flops(context) if self.name == "v3.2" else None


def v32_flops(context: int) -> Flops:
    """DeepSeek-V3.2: latent attention over 2048 selected tokens, the indexer over all."""
    d, layers, dense, heads = 7168, 61, 3, 128
    projections = 1536 * d + 1536 * heads * 192 + 576 * d + 2 * heads * 512 * 128 + heads * 128 * d
    index_linear = 1536 * 8192 + 128 * d + 64 * d
    expert, sparse = 6 * d * 2048, layers - dense
    return Flops(
        layers * 2 * (projections + index_linear),
        0,
        layers * 2 * context * 64 * 128,
        layers * 2 * min(2048, context) * heads * (576 + 512),
        sparse * expert * 8,
        sparse * (expert + 2 * 256 * d) + dense * 6 * d * 18432,
        0,
        2 * d * 129280,
    )


def gqa8(layers: int) -> ReferenceModel:
    """Grouped queries, 8 key-value heads of 128 in BF16: 4096 bytes per token and layer."""
    return ReferenceModel("gqa8", layers, layers * 2 * 8 * 128 * 2)


V32 = ReferenceModel("v3.2", 61, 61 * (656 + 132))
_CSA = 4
_WIDTHS = {"bf16": 2, "fp32": 4}
KINDS = ("fp8", *_WIDTHS)
