"""What a forward pass can be asked to show: routing, the indexer's choices, and its lesson."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from baleen.model.moe import Routing


@dataclass
class Trace:
    """Collects from one forward pass; hand a fresh one to each call."""

    teaches_indexer: bool = False
    """Collect the indexer's loss, and cut its inputs off from the rest of the gradient."""
    routings: dict[int, Routing] = field(default_factory=dict)
    chosen: dict[int, Tensor] = field(default_factory=dict)
    """Per CSA layer the blocks chosen, bool [B, T, M]."""
    indexer_losses: list[Tensor] = field(default_factory=list)
    """Per CSA layer KL(attention || indexer) of each query that sees a block, flat."""
    learned_BT: Tensor | None = None
    """Which queries to learn from, bool; None: all."""
    recalls: list[Tensor] = field(default_factory=list)
    _scores: dict[int, Tensor] = field(default_factory=dict)
    _picks: dict[int, Tensor] = field(default_factory=dict)

    def scored(
        self, layer: int, scores_BTM: Tensor, limits_BT: Tensor, picks_BTK: Tensor | None
    ) -> None:
        """A layer's scores and choice; no picks means all blocks up to the limit."""
        self._scores[layer] = scores_BTM
        if picks_BTK is None:
            visible = torch.arange(scores_BTM.shape[-1]) < limits_BT.unsqueeze(-1)
            self.chosen[layer] = visible.expand(scores_BTM.shape)
        else:
            self._picks[layer] = picks_BTK
            ones = torch.ones_like(picks_BTK, dtype=torch.bool)
            self.chosen[layer] = spread(ones, picks_BTK, scores_BTM.shape[-1])

    def attended(self, layer: int, weights_BTHX: Tensor) -> None:
        """The teacher: joint-softmax weights on the blocks, summed over heads, *then* normalised.

        Normalising each head over the blocks first would teach heads that look at the window only.
        Source: DeepSeek-V3.2 report section 2.1 (sparse stage: over the chosen set).
        """
        chosen = self.chosen[layer]
        target = weights_BTHX.detach().sum(2)
        if layer in self._picks:
            target = spread(target, self._picks.pop(layer), chosen.shape[-1])
        target = target / target.sum(-1, keepdim=True).clamp(min=1e-9)
        masked = self._scores.pop(layer).masked_fill(~chosen, -1e9)
        losses = (torch.special.xlogy(target, target) - target * masked.log_softmax(-1)).sum(-1)
        taught = chosen.any(-1)
        if self.learned_BT is not None:
            taught = taught & self.learned_BT
        self.indexer_losses.append(losses[taught])


def spread(values_BTK: Tensor, picks_BTK: Tensor, num_blocks: int) -> Tensor:
    """Values of picked blocks at the blocks' places, [B, T, M]; the rest is zero."""
    room = values_BTK.new_zeros(*values_BTK.shape[:2], num_blocks + 1)  # one place for -1
    index = torch.where(picks_BTK < 0, num_blocks, picks_BTK).long()
    return room.scatter(-1, index, values_BTK)[..., :-1]
