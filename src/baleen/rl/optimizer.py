"""Muon for matrices, AdamW for the rest, in the split of the V4 report.

AdamW: embedding, head, norms, mHC bases and scales, attention sinks, position biases of
compressors. Muon: every other matrix, each expert on its own. Source: DeepSeek-V4 report section 4;
Muon by Jordan et al. (2024), update scaled to RMS 0.18 as in arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2
"""Eight steps that pull singular values near 1 fast, two that settle them there."""
UPDATE_RMS = 0.18


def orthogonalize(matrices_Bnm: Tensor) -> Tensor:
    """The nearest orthogonal matrices: singular values to 1, by Newton-Schulz iteration."""
    x = matrices_Bnm
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-20)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; parameters of rank 3 are stacks of matrices."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                self._step(group, shape, parameters)

    def _step(
        self, group: dict[str, float], shape: torch.Size, parameters: list[nn.Parameter]
    ) -> None:
        """Equal shapes go through Newton-Schulz as one batch."""
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
            updates.append(momentum * group["momentum"] + parameter.grad)  # Nesterov
        stacked = torch.stack(updates)
        orthogonal = orthogonalize(stacked.flatten(0, -3)).view_as(stacked)
        scale = UPDATE_RMS * max(shape[-2:]) ** 0.5
        for parameter, update in zip(parameters, orthogonal, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * scale)


class HybridOptimizer:
    """Both optimisers behind one `step`; `factor` scales every learning rate of this step."""

    def __init__(self, model: nn.Module, lr_matrix: float, lr_other: float, weight_decay: float):
        matrices = [p for n, p in model.named_parameters() if p.requires_grad and is_matrix(n, p)]
        others = [p for n, p in model.named_parameters() if p.requires_grad and not is_matrix(n, p)]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, lr_matrix, weight_decay=weight_decay),
            torch.optim.AdamW(
                others, lr_other, betas=(0.9, 0.95), eps=1e-20, weight_decay=weight_decay
            ),
        )
        self._base = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, factor: float = 1.0) -> None:
        for part, bases in zip(self.parts, self._base, strict=True):
            for group, base in zip(part.param_groups, bases, strict=True):
                group["lr"] = base * factor
            part.step()


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether the report gives this parameter to Muon."""
    if parameter.dim() < 2 or name.endswith("ape"):
        return False
    return name not in ("embed.weight", "head.weight")
