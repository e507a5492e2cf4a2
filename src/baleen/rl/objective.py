"""What every kind of training here shares: the forward pass behind a shared prefix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baleen.model import LayerKind, Trace, Transformer
from baleen.model.losses import IGNORED
from baleen.model.transformer import Block


def forward_behind_prefix(
    model: Transformer, prefix: list[int], batches: Sequence[Tensor], traces: Sequence[Trace | None]
) -> list[Tensor]:
    """Hidden vectors [B, T, d] of batches whose rows all continue one prefix.

    The prefix goes through the model once and its state is forked for every row. Gradients flow
    back through the fork, so this equals training on whole sequences at a third of the cost.
    """
    state = model.new_state(1)
    model.hidden(torch.tensor([prefix]), state)
    return [
        model.hidden(batch, state.select(torch.zeros(len(batch), dtype=torch.int64)), trace=trace)
        for batch, trace in zip(batches, traces, strict=True)
    ]


def sampled_logprobs(model: Transformer, hidden_BTd: Tensor, targets_BT: Tensor) -> Tensor:
    """Log-probability of each target, fp32 [number of targets that are not `IGNORED`]."""
    kept = targets_BT != IGNORED
    logits = model.logits(hidden_BTd[kept])
    return -F.cross_entropy(logits, targets_BT[kept], reduction="none")


def set_selection(model: Transformer, sparse: bool) -> None:
    """Whether CSA layers attend the indexer's choice or, in early training, every block."""
    for block in model.layers:
        assert isinstance(block, Block)
        if block.attn.kind is LayerKind.CSA:
            assert block.attn.indexer is not None
            block.attn.indexer.topk = model.config.index_topk if sparse else 1 << 30


def clip_gradients(model: nn.Module, limit: float) -> float:
    """Scales all gradients down to a joint norm of `limit`; returns the norm before."""
    return float(
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], limit)
    )
