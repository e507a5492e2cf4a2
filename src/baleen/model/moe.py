"""Mixture of experts: hash-routed in the first layers, score-routed without auxiliary loss above.

Source: DeepSeek-V4 report section 2; released inference code (clamped SwiGLU, sqrt-softplus
scores).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baleen.errors import ConfigError
from baleen.kernels import swiglu
from baleen.kernels.precision import widen
from baleen.model.config import ModelConfig


class Routing(NamedTuple):
    """Which experts each token takes, and how much of each."""

    experts_LK: Tensor
    """int64, L = all tokens of the call."""
    weights_LK: Tensor
    """fp32, each row sums to `routed_scaling_factor`."""
    scores_LE: Tensor
    """fp32, for balance losses."""


class Gate(nn.Module):
    """Scores s = sqrt(softplus(x W)); the bias takes part in the choice, never in the weights."""

    def __init__(self, config: ModelConfig, hashed: bool) -> None:
        super().__init__()
        self.k, self.scaling = config.num_experts_per_tok, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.bias: nn.Parameter | None = None
        if hashed:
            table = torch.zeros(config.vocab_size, self.k, dtype=torch.int64)
            self.register_buffer("tid2eid", table)
        else:
            # no gradient: balance moves it, a step after each update
            self.bias = nn.Parameter(torch.zeros(config.n_routed_experts), requires_grad=False)

    def forward(self, x_Ld: Tensor, ids_L: Tensor) -> Routing:
        scores = F.softplus(F.linear(widen(x_Ld), widen(self.weight))).sqrt()
        if self.bias is None:
            experts = self.get_buffer("tid2eid")[ids_L]
        else:
            # a stable sort, so that equal scores go to the lowest expert on every machine
            biased = scores + self.bias
            experts = biased.sort(dim=-1, descending=True, stable=True).indices[:, : self.k]
        chosen = scores.gather(-1, experts)
        weights = chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * self.scaling
        return Routing(experts, weights, scores)


class ExpertOrder(NamedTuple):
    """The uses that tokens make of experts, brought into the order of the experts."""

    tokens_R: Tensor
    """Whose use each row is."""
    weights_R: Tensor
    sizes: list[int]
    """Rows of each expert."""
    place_R: Tensor
    """The row of each use, in the order of tokens and of their choice."""

    @classmethod
    def of(cls, routing: Routing, num_experts: int) -> ExpertOrder:
        chosen = routing.experts_LK
        order_R = chosen.flatten().argsort(stable=True)
        sizes = torch.bincount(chosen.flatten(), minlength=num_experts).tolist()
        place_R = torch.empty_like(order_R)
        place_R[order_R] = torch.arange(len(order_R), device=order_R.device)
        weights_R = routing.weights_LK.flatten()[order_R]
        return cls(order_R // chosen.shape[1], weights_R, sizes, place_R.view(chosen.shape))

    def summed(self, out_Rd: Tensor) -> Tensor:
        """Each token's rows added up in the order of its choice, [L, d]."""
        return out_Rd[self.place_R].sum(1)


class Experts(nn.Module):
    """All routed experts of a layer, stacked: w1 and w3 [E, I, d], w2 [E, d, I]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        e, i, d = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.limit = config.swiglu_limit
        self.quantize: Callable[[Tensor], Tensor] | None = None
        """Rounds what enters w2, where quantisation is simulated."""
        self.w1 = nn.Parameter(torch.empty(e, i, d))
        self.w3 = nn.Parameter(torch.empty(e, i, d))
        self.w2 = nn.Parameter(torch.empty(e, d, i))

    def forward(self, x_Ld: Tensor, routing: Routing) -> Tensor:
        """Sum of the chosen experts' outputs, fp32 [L, d]; an expert listed twice counts twice.

        Tokens are brought into the order of their experts once, so that each expert is one product
        over a run of rows; a token's outputs are summed in the order of its choice.
        """
        order = ExpertOrder.of(routing, self.w1.shape[0])
        x_Rd = x_Ld[order.tokens_R]
        runs = [(e, x) for e, x in enumerate(x_Rd.split(order.sizes)) if len(x)]
        gate_RI = torch.cat([x @ self.w1[e].T for e, x in runs])
        up_RI = torch.cat([x @ self.w3[e].T for e, x in runs])
        hidden_RI = swiglu(gate_RI, up_RI, self.limit, order.weights_R)
        if self.quantize is not None:
            hidden_RI = self.quantize(hidden_RI)
        parts = hidden_RI.to(x_Ld.dtype).split([len(x) for _, x in runs])
        out_Rd = torch.cat([h @ self.w2[e].T for (e, _), h in zip(runs, parts, strict=True)])
        return order.summed(widen(out_Rd))


class SharedExpert(nn.Module):
    """The expert that every token takes: same formula, no weight."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.moe_intermediate_size * config.n_shared_experts
        self.limit = config.swiglu_limit
        self.w1 = nn.Linear(config.hidden_size, width, bias=False)
        self.w3 = nn.Linear(config.hidden_size, width, bias=False)
        self.w2 = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = swiglu(self.w1(x), self.w3(x), self.limit)
        out: Tensor = self.w2(hidden.to(x.dtype))
        return out


class MoE(nn.Module):
    """Routed plus shared experts of one layer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        if config.n_shared_experts < 1:
            raise ConfigError(f"n_shared_experts = {config.n_shared_experts}: V4 has at least one")
        self.gate = Gate(config, config.is_hash_layer(layer))
        self.experts = Experts(config)
        self.shared_experts = SharedExpert(config)

    def forward(self, x_BTd: Tensor, ids_BT: Tensor) -> tuple[Tensor, Routing]:
        x_Ld = x_BTd.flatten(0, 1)
        routing: Routing = self.gate(x_Ld, ids_BT.flatten())
        routed = self.experts(x_Ld, routing) + widen(self.shared_experts(x_Ld))
        return routed.to(x_BTd.dtype).view_as(x_BTd), routing
