"""Manifold-constrained hyper-connections: N residual streams, mixed by a doubly stochastic matrix.

Source: mHC, arXiv 2512.24880; constants as in the released V4 inference code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baleen.kernels.streams import Mixing, Site, mix, read_out
from baleen.model.layers import RMSNorm


class HyperConnection(nn.Module):
    """One mHC site around one sublayer. Its parameters stay in fp32 whatever the model's dtype."""

    def __init__(self, streams: int, width: int, iterations: int, hc_eps: float, norm_eps: float):
        super().__init__()
        self.streams, self.iterations = streams, iterations
        self.hc_eps, self.norm_eps = hc_eps, norm_eps
        self.fn = nn.Parameter(torch.empty((2 + streams) * streams, streams * width))
        self.base = nn.Parameter(torch.zeros((2 + streams) * streams))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x_BTNd: Tensor, norm: RMSNorm) -> Mixing:
        """The sublayer's input, through its norm, and how its output enters the streams."""
        site = Site(
            self.fn,
            self.base,
            self.scale,
            norm.weight,
            self.iterations,
            self.hc_eps,
            self.norm_eps,
        )
        return mix(x_BTNd, site)


class StreamHead(nn.Module):
    """Collapses the streams once, through the final norm."""

    def __init__(self, streams: int, width: int, hc_eps: float, norm_eps: float) -> None:
        super().__init__()
        self.hc_eps, self.norm_eps = hc_eps, norm_eps
        self.fn = nn.Parameter(torch.empty(streams, streams * width))
        self.base = nn.Parameter(torch.zeros(streams))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x_BTNd: Tensor, norm: RMSNorm) -> Tensor:
        site = Site(self.fn, self.base, self.scale, norm.weight, 0, self.hc_eps, self.norm_eps)
        return read_out(x_BTNd, site)
