"""Hyper-connections: several residual streams, mixed around each sublayer.

Source: mHC, arXiv 2512.24880; constants as in the released V4 inference code.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from baleen.kernels.native import ExpandArgs, MixArgs, address, serves
from baleen.kernels.precision import widen

FEW_TOKENS = 16
"""Below so many tokens a library's matrix product is slower than the kernel's own dot products."""
MOST_STREAMS = 8
"""The native form keeps a token's streams in registers."""


class Mixing(NamedTuple):
    """What one site does with the streams at each token."""

    input_BTd: Tensor
    """The sublayer's input, normalised, in the streams' dtype."""
    post_BTN: Tensor
    """Weight of the sublayer's output in each stream."""
    comb_BTNN: Tensor
    """comb[j, k]: how much of stream j goes on into stream k; columns sum to 1."""


class Site(NamedTuple):
    """Weights and constants of one site."""

    function: Tensor
    """fp32 [(2 + N) N, N d]; [N, N d] where the streams end."""
    base: Tensor
    scale: Tensor
    norm_d: Tensor
    """Weight of the sublayer's norm."""
    iterations: int
    hc_eps: float
    norm_eps: float

    def widened(self) -> Site:
        """The same in at least fp32, for models that were cast as a whole."""
        return self._replace(
            function=widen(self.function),
            base=widen(self.base),
            scale=widen(self.scale),
            norm_d=widen(self.norm_d),
        )


def mix(x_BTNd: Tensor, site: Site) -> Mixing:
    """Collapses the streams into a sublayer's normalised input, and says how to go on."""
    n, width = x_BTNd.shape[-2:]
    site = site.widened()
    x, norm = widen(x_BTNd), site.norm_d
    library = serves(x, site.function, site.base, site.scale, norm, width=width)
    if library is not None and n <= MOST_STREAMS:
        return _mix_native(library, x, norm, site, x_BTNd.dtype)
    mixed = scaled_projection(x, site.function, site.norm_eps)
    pre = torch.sigmoid(mixed[..., :n] * site.scale[0] + site.base[:n]) + site.hc_eps
    post = 2 * torch.sigmoid(mixed[..., n : 2 * n] * site.scale[1] + site.base[n : 2 * n])
    comb = mixed[..., 2 * n :] * site.scale[2] + site.base[2 * n :]
    comb_NNL = comb.flatten(0, -2).T.contiguous().unflatten(0, (n, n))
    comb_NNL = sinkhorn(comb_NNL, site.iterations, site.hc_eps)
    comb_BTNN = comb_NNL.flatten(0, 1).T.reshape(*comb.shape[:-1], n, n)
    collapsed = collapse(x, pre).to(x_BTNd.dtype)
    normed = F.rms_norm(widen(collapsed), (width,), norm, site.norm_eps)
    return Mixing(normed.to(x_BTNd.dtype), post, comb_BTNN)


def read_out(x_BTNd: Tensor, site: Site) -> Tensor:
    """Collapses the streams behind the last layer: normalised vectors, in the streams' dtype."""
    site = site.widened()
    x = widen(x_BTNd)
    width = x.shape[-1]
    library = serves(x, *site[:4], width=width)
    if library is not None and x.shape[-2] <= MOST_STREAMS:
        return _read_out_native(library, x, site).to(x_BTNd.dtype)
    mixed = scaled_projection(x, site.function, site.norm_eps)
    pre = torch.sigmoid(mixed * site.scale + site.base) + site.hc_eps
    collapsed = collapse(x, pre).to(x_BTNd.dtype)
    return F.rms_norm(widen(collapsed), (width,), site.norm_d, site.norm_eps).to(x_BTNd.dtype)


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


def scaled_projection(x_BTNd: Tensor, function: Tensor, eps: float) -> Tensor:
    """RMS-normalised flattened streams times function^T; the norm is applied after the product."""
    flat = widen(x_BTNd.flatten(-2))
    return (flat @ widen(function).T) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)


def collapse(x_BTNd: Tensor, pre_BTN: Tensor) -> Tensor:
    """sum_j pre[j] X[j], summed in at least fp32, in the streams' dtype."""
    return (pre_BTN.unsqueeze(-1) * widen(x_BTNd)).sum(-2).to(x_BTNd.dtype)


def expand(y_BTd: Tensor, x_BTNd: Tensor, mixing: Mixing) -> Tensor:
    """X_new[k] = post[k] y + sum_j comb[j, k] X[j].

    The sum runs over comb's *first* index. The other one also gives plausible text, and wrong
    logits.
    """
    x, y = widen(x_BTNd), widen(y_BTd)
    library = serves(x, y, mixing.post_BTN, mixing.comb_BTNN, width=x.shape[-1])
    if library is not None and x.shape[-2] <= MOST_STREAMS:
        return _expand_native(library, y, x, mixing).to(x_BTNd.dtype)
    # plain multiply-adds: a batched product of thousands of N x N matrices costs several times more
    new_BTNd = mixing.post_BTN.unsqueeze(-1) * y.unsqueeze(-2)
    for from_BTN, x_BTd in zip(mixing.comb_BTNN.unbind(-2), x.unbind(-2), strict=True):
        new_BTNd = new_BTNd + from_BTN.unsqueeze(-1) * x_BTd.unsqueeze(-2)
    return new_BTNd.to(x_BTNd.dtype)


def _mix_native(
    library: ctypes.CDLL, x_BTNd: Tensor, norm_d: Tensor, site: Site, dtype: torch.dtype
) -> Mixing:
    batch, tokens, n, width = x_BTNd.shape
    x = x_BTNd.contiguous()
    mixed = None
    if batch * tokens >= FEW_TOKENS:
        mixed = (x.flatten(-2) @ site.function.T).contiguous()
    done = Mixing(
        torch.empty(batch, tokens, width),
        torch.empty(batch, tokens, n),
        torch.empty(batch, tokens, n, n),
    )
    args = MixArgs(
        x=address(x),
        mixed=address(mixed),
        function=address(site.function),
        base=address(site.base),
        scale=address(site.scale),
        norm=address(norm_d),
        input=address(done.input_BTd),
        post=address(done.post_BTN),
        comb=address(done.comb_BTNN),
        tokens=batch * tokens,
        streams=n,
        width=width,
        iterations=site.iterations,
        threads=torch.get_num_threads(),
        hc_eps=site.hc_eps,
        norm_eps=site.norm_eps,
    )
    library.baleen_mix(ctypes.byref(args))
    return done._replace(input_BTd=done.input_BTd.to(dtype))


def _read_out_native(library: ctypes.CDLL, x_BTNd: Tensor, site: Site) -> Tensor:
    batch, tokens, n, width = x_BTNd.shape
    x = x_BTNd.contiguous()
    out = torch.empty(batch, tokens, width)
    args = MixArgs(
        x=address(x),
        function=address(site.function),
        base=address(site.base),
        scale=address(site.scale),
        norm=address(site.norm_d),
        input=address(out),
        tokens=batch * tokens,
        streams=n,
        width=width,
        threads=torch.get_num_threads(),
        hc_eps=site.hc_eps,
        norm_eps=site.norm_eps,
    )
    library.baleen_read_out(ctypes.byref(args))
    return out


def _expand_native(library: ctypes.CDLL, y_BTd: Tensor, x_BTNd: Tensor, mixing: Mixing) -> Tensor:
    y, x = y_BTd.contiguous(), x_BTNd.contiguous()
    out = torch.empty_like(x)
    args = ExpandArgs(
        y=address(y),
        x=address(x),
        post=address(mixing.post_BTN),
        comb=address(mixing.comb_BTNN),
        out=address(out),
        tokens=x.shape[0] * x.shape[1],
        streams=x.shape[2],
        width=x.shape[3],
        threads=torch.get_num_threads(),
    )
    library.baleen_expand(ctypes.byref(args))
    return out
