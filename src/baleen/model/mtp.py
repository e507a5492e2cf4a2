"""Multi-token prediction: one more block that guesses the token after next.

At position t it takes the streams that left the last layer and the embedding of token t + 1, runs
one window-only block over them, and its own head mixer and norm make a vector that the *shared*
head turns into logits of token t + 2. In training that is a second loss; in decoding a draft that
the whole model verifies (`baleen.engine.speculation`).

Its attention sees positions only relative to each other, so a draft's state may begin anywhere:
what lies further back than the window never matters.

Source: DeepSeek-V3 report section 2.2 (arXiv 2412.19437), DeepSeek-V4 report section 2;
transformers drops these tensors on load, so it is no oracle for them.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from torch import Tensor, nn

from baleen.cache import LayerShape, LayerState, Span, State
from baleen.errors import ConfigError, UsageError
from baleen.model.config import ModelConfig
from baleen.model.hyper_connections import StreamHead
from baleen.model.layers import RMSNorm
from baleen.model.packing import Packing
from baleen.model.trace import Trace
from baleen.model.transformer import Block, Transformer


class Draft(NamedTuple):
    """What the MTP block makes of some positions."""

    streams_BTNd: Tensor
    """Stand in for the last layer's streams of the *next* position in a longer draft."""
    hidden_BTd: Tensor
    """What `Transformer.logits` turns into logits of the token after next."""


class MTPBlock(Block):
    """A block behind the last layer, with projections in front and a head mixer behind."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(_own_config(config), config.num_hidden_layers)
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(d, eps)
        self.hnorm = RMSNorm(d, eps)
        self.e_proj = nn.Linear(d, d, bias=False)
        self.h_proj = nn.Linear(d, d, bias=False)
        self.hc_head = StreamHead(config.hc_mult, d, config.hc_eps, eps)
        self.norm = RMSNorm(d, eps)

    def draft(
        self,
        streams_BTNd: Tensor,
        embedded_BTd: Tensor,
        next_BT: Tensor,
        span: Span | Packing,
        state: LayerState | None,
        trace: Trace | None,
    ) -> Draft:
        """Streams at t with token t + 1 (its id and its embedding) to the draft of token t + 2."""
        embedded_BTd = self.e_proj(self.enorm(embedded_BTd))
        x_BTNd = embedded_BTd.unsqueeze(2) + self.h_proj(self.hnorm(streams_BTNd))
        out_BTNd = self(x_BTNd, next_BT, span, state, trace)
        return Draft(out_BTNd, self.hc_head(out_BTNd, self.norm))


def draft(
    model: Transformer,
    streams_BTNd: Tensor,
    next_BT: Tensor,
    state: State | None = None,
    counts_B: Tensor | None = None,
    trace: Trace | None = None,
) -> Draft:
    """Drafts of the tokens after `next_BT`, which follow the positions that gave `streams_BTNd`.

    `state` (see `new_draft_state`) holds the positions before and takes these in.

    Raises:
        UsageError: the model has no MTP block.
    """
    block = block_of(model)
    if state is None:
        state = new_draft_state(model, len(next_BT))
    if counts_B is None and trace is None:
        stepped = model._drafter.step(next_BT, state, streams_BTNd)
        if stepped is not None:
            return Draft(stepped, block.hc_head(stepped, block.norm))
    span = Span.of(state.lengths_B, next_BT.shape[1], counts_B)
    made = block.draft(streams_BTNd, model.embed(next_BT), next_BT, span, state.layers[0], trace)
    state.advance(span)
    return made


def packed_draft(
    model: Transformer,
    streams_1LNd: Tensor,
    next_1L: Tensor,
    packing: Packing,
    trace: Trace | None = None,
) -> Draft:
    """`draft` within each document of a packed row."""
    embedded = model.embed(next_1L)
    return block_of(model).draft(streams_1LNd, embedded, next_1L, packing, None, trace)


def block_of(model: Transformer) -> MTPBlock:
    """The model's MTP block.

    Raises:
        UsageError: it has none.
    """
    if not model.mtp:
        raise UsageError(
            "this model has no MTP block", remedy="load a checkpoint that carries mtp.0.* tensors"
        )
    block = model.mtp[0]
    assert isinstance(block, MTPBlock)
    return block


def new_draft_state(model: Transformer, batch_size: int = 1, kv_dtype: str = "fp32") -> State:
    """An empty past for the MTP block: a window, nothing else."""
    shape = LayerShape(model.config.head_dim, 0, False, 0, model.config.qk_rope_head_dim)
    return State([shape], model.config.sliding_window, batch_size, kv_dtype)


def _own_config(config: ModelConfig) -> ModelConfig:
    """The configuration under which the block is one more layer: window only, experts scored."""
    depth = config.num_hidden_layers
    behind = config.compress_ratios[depth : depth + 1]
    if behind not in ((), (0,)):
        raise ConfigError(
            f"compress_ratios[{depth}] = {behind[0]}: the MTP block attends its window only (0)"
        )
    return dataclasses.replace(
        config,
        compress_ratios=(*config.compress_ratios[:depth], 0),
        num_hash_layers=min(config.num_hash_layers, depth),
    )
