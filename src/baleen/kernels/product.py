"""Rows times weight matrices in stored form: one matrix, or one of a stack for each run of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baleen.kernels.backend import on_gpu
from baleen.kernels.precision import widen
from baleen.kernels.weights import decode


def product(x_LI: Tensor, data_OI: Tensor, scales: Tensor | None) -> Tensor:
    """x W^T in at least fp32, [..., O]; the matrix is stored as `weights` says."""
    flat = x_LI.flatten(0, -2)
    if scales is not None and on_gpu(flat, data_OI):
        out = grouped_product(flat, [len(flat)], data_OI.unsqueeze(0), scales.unsqueeze(0))
    else:
        out = _times(flat, data_OI, scales)
    return out.view(*x_LI.shape[:-1], -1)


def grouped_product(
    x_RI: Tensor, sizes: Sequence[int], data_EOI: Tensor, scales: Tensor | None
) -> Tensor:
    """In at least fp32 [R, O]: the first sizes[0] rows by the first matrix, and so on."""
    if scales is not None and on_gpu(x_RI, data_EOI):
        from baleen.kernels.gpu.product import product as run

        return run(x_RI, list(sizes), data_EOI, scales)
    parts = [
        _times(rows, data_EOI[matrix], None if scales is None else scales[matrix])
        for matrix, rows in enumerate(x_RI.split(list(sizes)))
        if len(rows)
    ]
    return torch.cat(parts)


def _times(x_LI: Tensor, data_OI: Tensor, scales: Tensor | None) -> Tensor:
    x = widen(x_LI)
    out: Tensor = x @ decode(data_OI, scales, torch.float32).to(x.dtype).T
    return out
