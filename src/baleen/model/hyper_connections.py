"""Manifold-constrained hyper-connections: N residual streams, mixed by a doubly stochastic matrix.

Source: mHC, arXiv 2512.24880; constants as in the released V4 inference code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Mixing(NamedTuple):
    """What one site does with the streams at each token."""

    pre_BTN: Tensor
    """Weight of each stream in the sublayer's input."""
    post_BTN: Tensor
    """Weight of the sublayer's output in each stream."""
    comb_BTNN: Tensor
    """comb[j, k]: how much of stream j goes on into stream k; columns sum to 1."""


def sinkhorn(logits_NNL: Tensor, iterations: int, eps: float) -> Tensor:
    """Softmax over k of [j, k, L], then sums over j and over k normalised in turn, ending on j.

    The matrix indices come first so that each step is a few long vector operations; with them last,
    sums over runs of four numbers took a tenth of a training step.
    """
    comb = logits_NNL.softmax(1) + eps
    comb = comb / (comb.sum(0, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(1, keepdim=True) + eps)
        comb = comb / (comb.sum(0, keepdim=True) + eps)
    return comb


def scaled_projection(x_BTNd: Tensor, fn: Tensor, eps: float) -> Tensor:
    """RMS-normalised flattened streams times fn^T, fp32; the norm is applied after the product."""
    flat = x_BTNd.flatten(-2).float()
    return (flat @ fn.T) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)


class HyperConnection(nn.Module):
    """One mHC site around one sublayer. Its parameters stay in fp32 whatever the model's dtype."""

    def __init__(self, streams: int, width: int, iterations: int, hc_eps: float, norm_eps: float):
        super().__init__()
        self.streams, self.iterations = streams, iterations
        self.hc_eps, self.norm_eps = hc_eps, norm_eps
        self.fn = nn.Parameter(torch.empty((2 + streams) * streams, streams * width))
        self.base = nn.Parameter(torch.zeros((2 + streams) * streams))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x_BTNd: Tensor) -> Mixing:
        n = self.streams
        mixed = scaled_projection(x_BTNd, self.fn, self.norm_eps)
        pre = torch.sigmoid(mixed[..., :n] * self.scale[0] + self.base[:n]) + self.hc_eps
        post = 2 * torch.sigmoid(mixed[..., n : 2 * n] * self.scale[1] + self.base[n : 2 * n])
        comb = mixed[..., 2 * n :] * self.scale[2] + self.base[2 * n :]
        comb_NNL = comb.flatten(0, -2).T.contiguous().unflatten(0, (n, n))
        comb_NNL = sinkhorn(comb_NNL, self.iterations, self.hc_eps)
        return Mixing(pre, post, comb_NNL.flatten(0, 1).T.reshape(*comb.shape[:-1], n, n))


def collapse(x_BTNd: Tensor, pre_BTN: Tensor) -> Tensor:
    """The sublayer's input: sum_j pre[j] X[j], summed in fp32, in the streams' dtype."""
    return (pre_BTN.unsqueeze(-1) * x_BTNd.float()).sum(-2).to(x_BTNd.dtype)


def expand(y_BTd: Tensor, x_BTNd: Tensor, mixing: Mixing) -> Tensor:
    """X_new[k] = post[k] y + sum_j comb[j, k] X[j].

    The sum runs over comb's *first* index. The other one also gives plausible text, and wrong
    logits.
    """
    # plain multiply-adds: a batched product of thousands of N x N matrices costs several times more
    new_BTNd = mixing.post_BTN.unsqueeze(-1) * y_BTd.float().unsqueeze(-2)
    for from_BTN, x_BTd in zip(mixing.comb_BTNN.unbind(-2), x_BTNd.unbind(-2), strict=True):
        new_BTNd = new_BTNd + from_BTN.unsqueeze(-1) * x_BTd.float().unsqueeze(-2)
    return new_BTNd.to(x_BTNd.dtype)


class StreamHead(nn.Module):
    """Collapses the streams once, before the final norm."""

    def __init__(self, streams: int, width: int, hc_eps: float, norm_eps: float) -> None:
        super().__init__()
        self.hc_eps, self.norm_eps = hc_eps, norm_eps
        self.fn = nn.Parameter(torch.empty(streams, streams * width))
        self.base = nn.Parameter(torch.zeros(streams))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x_BTNd: Tensor) -> Tensor:
        mixed = scaled_projection(x_BTNd, self.fn, self.norm_eps)
        pre = torch.sigmoid(mixed * self.scale + self.base) + self.hc_eps
        return collapse(x_BTNd, pre)
