"""Rows times weight matrices in stored form: one matrix, or one of a stack for each run of rows."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from baleen.kernels.backend import on_gpu
from baleen.kernels.native import (
    MATRIX_KINDS,
    DecodeArgs,
    Matrix,
    ProductArgs,
    address,
    serves,
)
from baleen.kernels.precision import widen
from baleen.kernels.weights import decode, num_inputs

FEW_ROWS = 16
"""Up to so many rows are multiplied with codes as they are read; for more the matrix is decoded
first, once, and left to a library's product."""
BYTES_PER_THREAD = 1 << 20


def product(x_LI: Tensor, data_OI: Tensor, scales: Tensor | None) -> Tensor:
    """x W^T in at least fp32, [..., O]; the matrix is stored as `weights` says."""
    flat = x_LI.flatten(0, -2)
    if scales is not None and on_gpu(flat, data_OI):
        out = grouped_product(flat, [len(flat)], data_OI.unsqueeze(0), scales.unsqueeze(0))
    else:
        out = _times(flat, data_OI, scales)
    return out.view(*x_LI.shape[:-1], out.shape[-1])


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


def decoded(data_OI: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The values of a stored matrix, [O, I]."""
    library = _library(data_OI, scales) if scales is not None else None
    if library is None:
        return decode(data_OI, scales, dtype)
    outputs, inputs = data_OI.shape[0], num_inputs(data_OI)
    out = torch.empty(outputs, inputs)
    args = DecodeArgs(
        matrix=Matrix.of(data_OI, scales),
        out=address(out),
        outputs=outputs,
        inputs=inputs,
        threads=_threads(data_OI),
    )
    library.baleen_decode(ctypes.byref(args))
    return out.to(dtype)


def _times(x_LI: Tensor, data_OI: Tensor, scales: Tensor | None) -> Tensor:
    x = widen(x_LI)
    library = serves(x, width=x.shape[1]) if len(x) <= FEW_ROWS else None
    if library is not None and _library(data_OI, scales) is not None:
        return _times_native(library, x.contiguous(), data_OI, scales)
    out: Tensor = x @ decoded(data_OI, scales, torch.float32).to(x.dtype).T
    return out


def _times_native(
    library: ctypes.CDLL, x_LI: Tensor, data_OI: Tensor, scales: Tensor | None
) -> Tensor:
    out = torch.empty(len(x_LI), len(data_OI))
    args = ProductArgs(
        matrix=Matrix.of(data_OI, scales),
        x=address(x_LI),
        out=address(out),
        rows=len(x_LI),
        outputs=len(data_OI),
        inputs=x_LI.shape[1],
        threads=_threads(data_OI),
    )
    library.baleen_product(ctypes.byref(args))
    return out


def _library(data_OI: Tensor, scales: Tensor | None) -> ctypes.CDLL | None:
    """The library if it reads the matrix as it lies."""
    kind = data_OI.dtype, None if scales is None else scales.dtype
    if kind not in MATRIX_KINDS or (torch.is_grad_enabled() and data_OI.requires_grad):
        return None
    parts = [data_OI] if scales is None else [data_OI, scales]
    if any(not part.is_contiguous() or part.device.type != "cpu" for part in parts):
        return None
    return serves(width=num_inputs(data_OI))


def _threads(data_OI: Tensor) -> int:
    """Starting a thread takes as long as reading some hundred kilobytes."""
    return min(torch.get_num_threads(), 1 + data_OI.nbytes // BYTES_PER_THREAD)
