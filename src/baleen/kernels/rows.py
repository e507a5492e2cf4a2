"""Norms, rotations and gates: row by row, each with its neighbours' work in one pass."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from baleen.kernels.native import GateArgs, NormRotateArgs, address, serves
from baleen.kernels.precision import widen


def rms_normalize(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, in fp32; no weight."""
    x = widen(x)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rotate_tail(x: Tensor, phases: Tensor) -> Tensor:
    """Turns the last R dims of x, as R/2 interleaved pairs, by `phases` ([..., R/2], broadcast)."""
    rope_dim = phases.shape[-1] * 2
    head, tail = x[..., :-rope_dim], x[..., -rope_dim:]
    pairs = torch.view_as_complex(widen(tail).unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * phases).flatten(-2).to(x.dtype)
    return torch.cat([head, turned], dim=-1)


def norm_rotate(
    x_BTHc: Tensor, weight_c: Tensor | None, phases_BTR: Tensor, eps: float | None
) -> Tensor:
    """RMS norm of each head (none if `eps` is None), then its last dims turned; at least fp32.

    Phases are complex, [B or 1, T, R/2], equal for all heads of a token.
    """
    x = widen(x_BTHc)
    weight = None if weight_c is None else widen(weight_c)
    library = serves(x, weight, width=x.shape[-1])
    if library is not None:
        return _norm_rotate_native(library, x, weight, phases_BTR, eps, direction=1.0)
    if eps is not None:
        x = rms_normalize(x, eps) if weight is None else F.rms_norm(x, x.shape[-1:], weight, eps)
    return rotate_tail(x, phases_BTR.unsqueeze(-2))


def rotate_back(x_BTHc: Tensor, phases_BTR: Tensor) -> Tensor:
    """The last dims of each head turned the other way; at least fp32."""
    x = widen(x_BTHc)
    library = serves(x, width=x.shape[-1])
    if library is not None:
        return _norm_rotate_native(library, x, None, phases_BTR, None, direction=-1.0)
    return rotate_tail(x, phases_BTR.conj().unsqueeze(-2))


def _norm_rotate_native(
    library: ctypes.CDLL,
    x_BTHc: Tensor,
    weight_c: Tensor | None,
    phases_BTR: Tensor,
    eps: float | None,
    direction: float,
) -> Tensor:
    batch, tokens, heads, width = x_BTHc.shape
    x, phases = x_BTHc.contiguous(), phases_BTR.contiguous()
    out = torch.empty_like(x)
    args = NormRotateArgs(
        x=address(x),
        weight=address(weight_c),
        phases=address(phases),
        out=address(out),
        rows=batch * tokens * heads,
        width=width,
        rope=2 * phases.shape[-1],
        heads=heads,
        tokens=tokens * len(phases),
        threads=torch.get_num_threads(),
        eps=-1.0 if eps is None else eps,
        direction=direction,
    )
    library.baleen_norm_rotate(ctypes.byref(args))
    return out


def swiglu(gate: Tensor, up: Tensor, limit: float, weights_L: Tensor | None = None) -> Tensor:
    """silu(min(gate, limit)) * clamp(up, -limit, limit), times each row's weight; at least fp32."""
    gate, up = widen(gate), widen(up)
    library = serves(gate, up, weights_L, width=gate.shape[-1])
    if library is not None:
        return _swiglu_native(library, gate, up, limit, weights_L)
    hidden = F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)
    return hidden if weights_L is None else hidden * weights_L.unsqueeze(-1)


def _swiglu_native(
    library: ctypes.CDLL, gate: Tensor, up: Tensor, limit: float, weights_L: Tensor | None
) -> Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    weights = None if weights_L is None else weights_L.contiguous()
    out = torch.empty_like(gate)
    args = GateArgs(
        gate=address(gate),
        up=address(up),
        weights=address(weights),
        out=address(out),
        rows=gate.numel() // gate.shape[-1],
        width=gate.shape[-1],
        threads=torch.get_num_threads(),
        limit=limit,
    )
    library.baleen_gate(ctypes.byref(args))
    return out
