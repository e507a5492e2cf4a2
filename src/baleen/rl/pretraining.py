"""Training on plain text, with every loss that the architecture has.

What a step does is the whole of it: next tokens, drafts, the indexer's lesson, even load within a
sequence and, behind the gradient step, the biases that keep the load even over time. Where the
tokens come from is the caller's business.

Source: DeepSeek-V4 report section 4 (weights and schedule).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from baleen.model import Trace, Transformer
from baleen.model.losses import (
    IGNORED,
    MTP_WEIGHT,
    MTP_WEIGHT_LATE,
    SEQUENCE_BALANCE_WEIGHT,
    balance_experts,
    expert_loads,
    indexer_loss,
    mtp_loss,
    next_token_loss,
    sequence_balance_loss,
)
from baleen.model.packing import Packing, pack
from baleen.model.rounding import rounded_weights
from baleen.rl.objective import clip_gradients
from baleen.rl.optimizer import HybridOptimizer
from baleen.rl.parallel import average_gradients, total


@dataclass(frozen=True)
class PretrainingConfig:
    """Length and rates of a run."""

    steps: int
    lr_matrix: float = 0.006
    """Muon's; its updates have RMS 0.18 times this."""
    lr_other: float = 0.003
    weight_decay: float = 0.1
    warmup_steps: int = 50
    decay_share: float = 0.4
    """The last part of the run, in which the rates fall by a cosine; before it they are constant.
    """
    final_lr: float = 0.1
    clip: float = 1.0
    teaches_indexer: bool = True
    weight_format: str = "fp32"
    """Passes run on weights rounded as in a file of this format; "fp4" for a last stretch."""

    @property
    def decay_start(self) -> int:
        return self.steps - round(self.steps * self.decay_share)

    def lr_factor(self, step: int) -> float:
        if step < self.decay_start:
            return min(1.0, (step + 1) / self.warmup_steps)
        done = (step - self.decay_start) / max(1, self.steps - self.decay_start)
        return self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * done)) / 2

    def mtp_weight(self, step: int) -> float:
        return MTP_WEIGHT if step < self.decay_start else MTP_WEIGHT_LATE


def new_optimizer(model: Transformer, config: PretrainingConfig) -> HybridOptimizer:
    return HybridOptimizer(model, config.lr_matrix, config.lr_other, config.weight_decay)


class TextBatch(NamedTuple):
    """What one step learns from: whole rows, or documents packed into one row."""

    ids_BT: Tensor
    targets_BT: Tensor
    """The next tokens; `IGNORED` where a document ends."""
    packing: Packing | None = None

    @classmethod
    def rows(cls, tokens_BT: Tensor) -> TextBatch:
        """Stretches of T + 1 tokens."""
        return cls(tokens_BT[:, :-1], tokens_BT[:, 1:])

    @classmethod
    def packed(cls, documents: Sequence[Sequence[int]]) -> TextBatch:
        """Documents, none of which sees another or is asked for another's first token."""
        ids_1L, packing = pack(documents)
        targets_1L = ids_1L.roll(-1, 1).masked_fill(packing.is_last_L, IGNORED)
        return cls(ids_1L, targets_1L, packing)

    @property
    def sequences_L(self) -> Tensor:
        """The number of each token's sequence."""
        if self.packing is not None:
            return self.packing.documents_L
        return torch.arange(len(self.ids_BT)).repeat_interleave(self.ids_BT.shape[1])


def losses(model: Transformer, batch: TextBatch, trace: Trace) -> dict[str, Tensor]:
    """Each loss of one pass, unweighted; those that the model lacks are absent."""
    ids, targets, packing = batch
    if packing is None:
        streams_BTNd = model.streams(ids, trace=trace)
    else:
        streams_BTNd = model.packed_streams(ids, packing, trace)
    found = {"loss": next_token_loss(model, model.readout(streams_BTNd), targets)}
    if model.mtp:
        found["mtp"] = mtp_loss(model, streams_BTNd, ids, targets, trace, packing)
    if trace.indexer_losses:
        found["indexer_kl"] = indexer_loss([trace])
    found["balance"] = sequence_balance_loss(model, trace, batch.sequences_L)
    return found


def train_step(
    model: Transformer,
    optimizer: HybridOptimizer,
    batch: TextBatch,
    config: PretrainingConfig,
    step: int,
) -> dict[str, float]:
    """One gradient step; returns each loss and the gradient's norm."""
    trace = Trace(teaches_indexer=config.teaches_indexer)
    weights = {"mtp": config.mtp_weight(step), "balance": SEQUENCE_BALANCE_WEIGHT}
    with rounded_weights(model, config.weight_format):
        found = losses(model, batch, trace)
        weighted = [loss * weights.get(name, 1.0) for name, loss in found.items()]
        torch.stack(weighted).sum().backward()
    average_gradients(model)
    norm = clip_gradients(model, config.clip)
    optimizer.step(config.lr_factor(step))
    model.zero_grad(set_to_none=True)
    balance_experts(model, total(expert_loads(model, [trace])))  # all ranks move alike
    return {**{name: loss.item() for name, loss in found.items()}, "grad_norm": norm}
