"""Fresh weights."""

from __future__ import annotations

import torch
from torch import nn

from baleen.model.transformer import Transformer


def initialize(model: Transformer, seed: int) -> Transformer:
    """Draws every weight anew from `seed`: normal matrices, unit norms, zero sinks and biases.

    With zero mHC bases and unit scales the four streams start as one plain residual. Each row of a
    hash layer's table gets *distinct* experts: a repeated one would count twice.
    """
    generator = torch.Generator().manual_seed(seed)
    std = model.config.initializer_range
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if (
                leaf in ("weight", "w1", "w2", "w3", "fn") and parameter.dim() > 1
            ) or leaf == "ape":
                parameter.normal_(0.0, std, generator=generator)
            elif leaf in ("weight", "scale"):
                nn.init.ones_(parameter)
            else:
                nn.init.zeros_(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("tid2eid"):
                experts = model.config.n_routed_experts
                order = torch.rand(buffer.shape[0], experts, generator=generator).argsort(-1)
                buffer.copy_(order[:, : buffer.shape[1]])
    return model
