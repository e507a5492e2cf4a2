"""What training minimises beside the next token: drafts, even load within a sequence, the indexer.

Every loss is a mean, so that its weight means the same for any batch. Positions whose target is
`IGNORED` count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from baleen.model.mtp import block_of, draft, packed_draft
from baleen.model.packing import Packing
from baleen.model.trace import Trace
from baleen.model.transformer import Transformer

IGNORED = -100
"""Target of a position that carries no loss."""
MTP_WEIGHT, MTP_WEIGHT_LATE = 0.3, 0.1
"""Of the draft's loss, before and from the start of the learning rate's decay."""
SEQUENCE_BALANCE_WEIGHT = 1e-4
BALANCE_SPEED = 0.001
"""Step of the aux-loss-free bias. Source of all four: DeepSeek-V4 report section 4."""


def next_token_loss(model: Transformer, hidden_BTd: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy over the positions that have a target."""
    kept = targets_BT != IGNORED
    return F.cross_entropy(model.logits(hidden_BTd[kept]), targets_BT[kept])


def mtp_loss(
    model: Transformer,
    streams_BTNd: Tensor,
    ids_BT: Tensor,
    targets_BT: Tensor,
    trace: Trace | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Mean cross-entropy of the drafts: position t, shown token t + 1, is asked for token t + 2.

    `targets_BT` are the next tokens of `ids_BT`, as for `next_token_loss`. Where either of the two
    tokens ahead is `IGNORED`, there is nothing to draft. The last position of a row or of a packed
    document, which has no next token to be shown, is shown token 0, so that the pass has the shape
    of the model's own.
    """
    next_BT = F.pad(ids_BT[:, 1:], (0, 1))
    if packing is None:
        made = draft(model, streams_BTNd, next_BT, trace=trace)
    else:
        next_BT = next_BT.masked_fill(packing.is_last_L, 0)
        made = packed_draft(model, streams_BTNd, next_BT, packing, trace)
    after_next = F.pad(targets_BT[:, 1:], (0, 1), value=IGNORED)
    after_next = after_next.masked_fill(targets_BT == IGNORED, IGNORED)
    return next_token_loss(model, made.hidden_BTd, after_next)


def sequence_balance_loss(model: Transformer, trace: Trace, sequences_L: Tensor) -> Tensor:
    """sum_i f_i P_i of each score-routed layer, its mean over sequences, summed over layers.

    f_i is expert i's share of a sequence's choices times E, P_i the mean of its normalised score.
    `sequences_L` numbers the sequence of every token of the pass, -1 for padding. Even load gives 1
    per layer. Source: DeepSeek-V3 report section 2.1.2.
    """
    real = sequences_L >= 0
    where_L = sequences_L[real]
    lengths_S = torch.bincount(where_L).clamp(min=1).unsqueeze(1)
    losses = []
    for layer in _scored_layers(model):
        routing = trace.routings.get(layer)
        if routing is None:
            continue  # the MTP block, in a pass without drafts
        scores_LE, experts_LK = routing.scores_LE[real], routing.experts_LK[real]
        shares_LE = scores_LE / scores_LE.sum(-1, keepdim=True)
        shape = (len(lengths_S), shares_LE.shape[1])
        mean_SE = shares_LE.new_zeros(shape).index_add(0, where_L, shares_LE) / lengths_S
        ones_LE = torch.zeros_like(shares_LE).scatter_add(
            1, experts_LK, torch.ones_like(experts_LK, dtype=shares_LE.dtype)
        )
        load_SE = shares_LE.new_zeros(shape).index_add(0, where_L, ones_LE)
        f_SE = load_SE * shape[1] / (experts_LK.shape[1] * lengths_S)
        losses.append((f_SE * mean_SE).sum(1).mean())
    return torch.stack(losses).sum() if losses else torch.zeros(())


def indexer_loss(traces: Sequence[Trace]) -> Tensor:
    """Mean KL of the CSA layers' queries that see a block; 0 if none does."""
    lessons = [loss.flatten() for trace in traces for loss in trace.indexer_losses]
    kept = torch.cat(lessons) if lessons else torch.zeros(0)
    return kept.mean() if len(kept) else kept.sum()


def expert_loads(model: Transformer, traces: Sequence[Trace]) -> Tensor:
    """How often each expert of each score-routed layer was chosen, fp32 [layers, E]."""
    return torch.stack(
        [
            torch.bincount(
                torch.cat([trace.routings[layer].experts_LK.flatten() for trace in traces]),
                minlength=model.config.n_routed_experts,
            ).float()
            for layer in _scored_layers(model)
            if all(layer in trace.routings for trace in traces)
        ]
    )


@torch.no_grad()
def balance_experts(model: Transformer, loads_LE: Tensor) -> None:
    """Moves each score-routed layer's bias a step towards even load, as `expert_loads` found it."""
    for bias, load_E in zip(_scored_layers(model).values(), loads_LE, strict=False):
        bias.add_(torch.sign(load_E.mean() - load_E), alpha=BALANCE_SPEED)


def _scored_layers(model: Transformer) -> dict[int, Tensor]:
    """Layer -> balance bias, hash layers left out, the MTP block last."""
    blocks = [*model.layers, *([block_of(model)] if model.mtp else [])]
    return {block.layer: block.ffn.gate.bias for block in blocks if block.ffn.gate.bias is not None}
