"""How cached vectors are stored: plain numbers, or packed into pages of codes and scales.

A packed page of n entries is *planar*: n rows of codes, then n rows of scales, so that a read of
many entries' codes is one run. Interleaving them entry by entry would hold the same bytes in
another order, and readers of the one would misread the other; so a saved state names its kind.

- fp8: E4M3 but for the rotary part, which stays bf16, and a UE8M0 scale per 64 numbers, padded to a
  multiple of 8 bytes: 584 bytes for 448 + 64 numbers. Source: FlashMLA, `tests/quant.py`.
- fp4: E2M1 after a Hadamard rotation, two to a byte, low nibble first, a UE8M0 scale per 32
  numbers: 68 bytes for 128. Source: OCP MX specification 1.0; vLLM's FP4 indexer cache.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from baleen.errors import ConfigError
from baleen.kernels import packing
from baleen.kernels.kind import Kind
from baleen.kernels.native import KINDS, PackArgs, address, serves

PLAIN = {Kind.FP32: torch.float32, Kind.BF16: torch.bfloat16}


@dataclass(frozen=True)
class Layout:
    """Everything needed to read a list of entries."""

    kind: Kind
    width: int
    rope: int = 0
    """Last numbers of an entry, kept in bf16 by fp8."""
    page: int = 1
    """Entries to a page, where packed."""

    def __post_init__(self) -> None:
        if self.kind is Kind.FP8 and (self.width - self.rope) % 8:
            raise ConfigError(f"fp8 entries need a multiple of 8 before the rotary part: {self}")
        if self.kind is Kind.FP4 and (self.width & (self.width - 1) or self.width < packing.BLOCK):
            raise ConfigError(f"fp4 keys need a power of two of at least {packing.BLOCK}: {self}")

    @property
    def is_plain(self) -> bool:
        return self.kind in PLAIN

    @property
    def code_bytes(self) -> int:
        if self.kind is Kind.FP8:
            return self.width + self.rope
        return self.width // 2 if self.kind is Kind.FP4 else self.width * self.dtype.itemsize

    @property
    def scale_bytes(self) -> int:
        if self.kind is Kind.FP8:
            tiles = math.ceil((self.width - self.rope) / packing.TILE)
            return math.ceil(tiles / 8) * 8
        return self.width // packing.BLOCK if self.kind is Kind.FP4 else 0

    @property
    def entry_bytes(self) -> int:
        return self.code_bytes + self.scale_bytes

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor that holds the entries."""
        return PLAIN.get(self.kind, torch.uint8)

    def empty(self, batch: int, capacity: int) -> Tensor:
        """Room for entries: [B, capacity, width], or packed [B, pages, page bytes]; not filled."""
        if self.is_plain:
            return torch.empty(batch, capacity, self.width, dtype=self.dtype)
        pages = math.ceil(capacity / self.page)
        return torch.empty(batch, pages, self.page * self.entry_bytes, dtype=torch.uint8)

    def capacity(self, data: Tensor) -> int:
        return data.shape[1] if self.is_plain else data.shape[1] * self.page

    def put(self, data: Tensor, rows: Tensor, places: Tensor, values: Tensor) -> None:
        """Writes values [L, width] as entries `places` [L] of `rows` ([L], or [1] for one row)."""
        if self.is_plain:
            data[rows, places] = values.to(data.dtype)
            return
        library = serves(values, width=self.width)
        if library is not None and data[0].is_contiguous():
            self._put_native(library, data, rows, places, values)
            return
        codes, scales = self._planes(data)
        new = self.encode(values)
        codes[rows, places // self.page, places % self.page] = new[0]
        scales[rows, places // self.page, places % self.page] = new[1]

    def _put_native(
        self, library: ctypes.CDLL, data: Tensor, rows: Tensor, places: Tensor, values: Tensor
    ) -> None:
        values, rows, places = values.contiguous(), rows.contiguous(), places.contiguous()
        args = PackArgs(
            values=address(values),
            rows=address(rows),
            places=address(places),
            data=address(data),
            count=len(values),
            width=self.width,
            rope=self.rope,
            page=self.page,
            kind=KINDS[self.kind],
            stride=data.stride(0),
        )
        library.baleen_pack(ctypes.byref(args))

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [..., code bytes] and scales [..., scale bytes] of vectors."""
        if self.kind is Kind.FP8:
            return packing.encode_fp8(values, self.rope, self.scale_bytes)
        return packing.encode_fp4(packing.hadamard(values))

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """fp32 vectors; those of fp4 stay rotated, and so must be what they are compared with."""
        if self.kind is Kind.FP8:
            return packing.decode_fp8(codes, scales, self.rope)
        return packing.decode_fp4(codes, scales)

    def rounded(self, values: Tensor) -> Tensor:
        """Vectors as they will be read back, in at least fp32."""
        if self.kind is Kind.FP32:
            return values if values.dtype == torch.float64 else values.float()
        if self.kind is Kind.BF16:
            return values.to(torch.bfloat16).float()
        return self.decode(*self.encode(values))

    def _planes(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of packed pages, as views [B, pages, page, bytes]."""
        codes, scales = data.split(
            [self.page * self.code_bytes, self.page * self.scale_bytes], dim=-1
        )
        return (
            codes.unflatten(-1, (self.page, self.code_bytes)),
            scales.unflatten(-1, (self.page, self.scale_bytes)),
        )


class Entries(NamedTuple):
    """The first `length` entries of each row of a list."""

    data: Tensor
    length: int
    layout: Layout

    @classmethod
    def plain(cls, values_BMc: Tensor) -> Entries:
        """Vectors as they are; what is not bf16 counts as fp32, so that fp64 may pass."""
        kind = Kind.BF16 if values_BMc.dtype == torch.bfloat16 else Kind.FP32
        return cls(values_BMc, values_BMc.shape[1], Layout(kind, values_BMc.shape[2]))

    def values(self) -> Tensor:
        """All of them decoded, [B, M, c], in at least fp32 or as autograd knows them."""
        if self.layout.is_plain:
            return self.data[:, : self.length]
        codes, scales = self.layout._planes(self.data)
        codes, scales = codes.flatten(1, 2), scales.flatten(1, 2)
        return self.layout.decode(codes[:, : self.length], scales[:, : self.length])

    def gather(self, picks_BTK: Tensor) -> Tensor:
        """The picked ones, [B, T, K, c]; a pick of -1 gives entry 0, to be masked by the caller.

        It reads through an embedding look-up, whose gradient is summed far faster than an index's.
        """
        if self.layout.is_plain:
            values = self.values()
            row_B = torch.arange(len(values), device=values.device)
            row_B = torch.arange(len(values), device=values.device)
            offset_B11 = (row_B * self.length).view(-1, 1, 1)
            return F.embedding(picks_BTK.clamp(min=0) + offset_B11, values.flatten(0, 1))
        picks, page = picks_BTK.clamp(min=0).long(), self.layout.page
        rows = torch.arange(len(picks), device=picks.device).view(-1, 1, 1)
        planes = self.layout._planes(self.data)
        return self.layout.decode(*(plane[rows, picks // page, picks % page] for plane in planes))


def readable(*lists: Entries) -> bool:
    """Whether entries are stored alike and as the library reads them, without gradients."""
    return all(
        entries.layout.kind is lists[0].layout.kind
        and entries.data.dtype == entries.layout.dtype
        and entries.data[0].is_contiguous()
        and not (torch.is_grad_enabled() and entries.data.requires_grad)
        for entries in lists
    )


def row_bytes(entries: Entries) -> int:
    """Bytes from one row of a batch to the next."""
    return entries.data.stride(0) * entries.data.element_size()
