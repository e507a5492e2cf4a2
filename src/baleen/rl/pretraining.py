"""Training on plain text, with every loss that the architecture has.

What a step does is the whole of it: next tokens, drafts, the indexer's lesson, even load within a
sequence and, behind the gradient step, the biases that keep the load even over time. Where the
tokens come from is the caller's business.

Source: DeepSeek-V4 report section 4 (weights and schedule).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from baleen.model import Trace, Transformer
from baleen.model.losses import (
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


def losses(
    model: Transformer, ids_BT: Tensor, targets_BT: Tensor, trace: Trace
) -> dict[str, Tensor]:
    """Each loss of one pass over whole rows, unweighted; those that the model lacks are absent."""
    streams_BTNd = model.streams(ids_BT, trace=trace)
    found = {"loss": next_token_loss(model, model.readout(streams_BTNd), targets_BT)}
    if model.mtp:
        found["mtp"] = mtp_loss(model, streams_BTNd, ids_BT, targets_BT, trace)
    if trace.indexer_losses:
        found["indexer_kl"] = indexer_loss([trace])
    rows_BT = torch.arange(len(ids_BT)).unsqueeze(1).expand_as(ids_BT)
    found["balance"] = sequence_balance_loss(model, trace, rows_BT.flatten())
    return found


def train_step(
    model: Transformer,
    optimizer: HybridOptimizer,
    tokens_BT: Tensor,
    config: PretrainingConfig,
    step: int,
) -> dict[str, float]:
    """One gradient step on rows of T + 1 tokens; returns each loss and the gradient's norm."""
    trace = Trace(teaches_indexer=config.teaches_indexer)
    found = losses(model, tokens_BT[:, :-1], tokens_BT[:, 1:], trace)
    weights = {"mtp": config.mtp_weight(step), "balance": SEQUENCE_BALANCE_WEIGHT}
    torch.stack([loss * weights.get(name, 1.0) for name, loss in found.items()]).sum().backward()
    average_gradients(model)
    norm = clip_gradients(model, config.clip)
    optimizer.step(config.lr_factor(step))
    model.zero_grad(set_to_none=True)
    balance_experts(model, total(expert_loads(model, [trace])))  # all ranks move alike
    return {**{name: loss.item() for name, loss in found.items()}, "grad_norm": norm}
