"""A tensor as a file holds it: plain, or codes with scales."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from baleen.errors import CheckpointError, UsageError
from baleen.kernels.weights import decode
from baleen.model.formats import fp4, fp8

KEPT_FP32 = re.compile(r"(attn_sink|\.ape|hc_(attn|ffn|head)_\w+|gate\.bias)$")
"""Tensors that released files keep in fp32 whatever the rest is stored in."""
DENSE = re.compile(
    r"(\.attn\.(wq_a|wq_b|wkv|wo_a|wo_b|indexer\.wq_b)|\.shared_experts\.w[123]"
    r"|^mtp\.\d+\.[eh]_proj)\.weight$"
)
"""Matrices that released files hold in FP8."""
EXPERT = re.compile(r"\.ffn\.experts\.\d+\.w[123]\.weight$")
"""Matrices that released files hold in FP4, those of base models in FP8."""


class Format(StrEnum):
    """What `save_pretrained` and `baleen convert` write."""

    FP32 = "fp32"
    """Everything in fp32: exact work and tests."""
    BF16 = "bf16"
    """Matrices and norms in bf16."""
    FP8 = "fp8"
    """Dense matrices and experts in FP8, the rest as in bf16: the base models' layout."""
    FP4 = "fp4"
    """Experts in FP4, dense matrices in FP8, the rest as in bf16: the instruct models' layout."""

    @classmethod
    def of(cls, name: str) -> Format:
        """Raises UsageError for a name that is none."""
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(cls)
            raise UsageError(f"format {name!r} cannot be written; known: {known}") from None


class Kind(StrEnum):
    """How one tensor is stored."""

    PLAIN = "plain"
    FP8 = "fp8"
    FP4 = "fp4"


def kind_in(name: str, format: Format) -> Kind:
    """How a tensor of that released name is stored in a format."""
    if format in (Format.FP4, Format.FP8):
        if EXPERT.search(name):
            return Kind(format.value)
        if DENSE.search(name):
            return Kind.FP8
    return Kind.PLAIN


def plain_dtype(name: str, format: Format, current: torch.dtype) -> torch.dtype:
    """The dtype of a tensor that is stored without scales; integers stay what they are."""
    if not current.is_floating_point:
        return current
    if format is Format.FP32 or KEPT_FP32.search(name):
        return torch.float32
    return torch.bfloat16


class Stored(NamedTuple):
    """One tensor in its stored form."""

    data: Tensor
    """Values, or codes: float8_e4m3fn [O, I] or int8 [O, I/2]."""
    scales: Tensor | None

    @property
    def kind(self) -> Kind:
        if self.scales is None:
            return Kind.PLAIN
        return Kind.FP4 if self.data.dtype == torch.int8 else Kind.FP8

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values, however they are stored."""
        if self.kind is not Kind.FP4:
            return tuple(self.data.shape)
        return (*self.data.shape[:-1], self.data.shape[-1] * 2)

    @property
    def values_dtype(self) -> torch.dtype:
        """Of `values()`."""
        return self.data.dtype if self.scales is None else torch.float32

    def values(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor itself; without a dtype in fp32 if it has scales, else as stored."""
        return decode(self.data, self.scales, dtype or self.values_dtype)


def check_scales(name: str, stored: Stored) -> None:
    """Refuses codes and scales that do not belong together.

    Raises:
        CheckpointError: naming the tensor, what it has and what it needs.
    """
    data, scales = stored.data, stored.scales
    if scales is None:
        if data.dtype in (torch.int8, torch.float8_e4m3fn):
            raise CheckpointError(f"{name} is {data.dtype} and has no scales beside it")
        return
    if data.dim() != 2 or data.dtype not in (torch.int8, torch.float8_e4m3fn):
        raise CheckpointError(f"{name} is {data.dtype} {list(data.shape)}, which takes no scales")
    is_fp4 = data.dtype == torch.int8
    if scales.dtype not in ([torch.float8_e8m0fnu] if is_fp4 else _FP8_SCALES):
        wanted = "E8M0" if is_fp4 else "E8M0 or F32"
        raise CheckpointError(f"{name}: its scales are {scales.dtype}, not {wanted}")
    rows, columns = stored.shape
    expected = (rows, columns // fp4.BLOCK) if is_fp4 else fp8.scale_shape(stored.shape)
    if tuple(scales.shape) != expected or (is_fp4 and columns % fp4.BLOCK):
        raise CheckpointError(
            f"{name}: its scales have shape {list(scales.shape)}, {rows} x {columns} "
            f"needs {list(expected)}"
        )


_FP8_SCALES = [torch.float8_e8m0fnu, torch.float32]
