"""Modules whose weights stay as the file stores them and are decoded when they are used.

Packed ones hold codes and scales in memory; mapped ones hold views of the file, so that what no
token asks for is never read. Both are for inference: there is nothing here that a gradient could
change. Letters as in `layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baleen.kernels import swiglu
from baleen.kernels.precision import widen
from baleen.model.formats.reader import Reader
from baleen.model.formats.stored import Stored
from baleen.model.moe import Routing


class Residence(StrEnum):
    """How a loaded model holds its weights."""

    DECODED = "decoded"
    """Plain tensors of one dtype: fastest to compute with, and trainable."""
    PACKED = "packed"
    """Quantised matrices keep their codes; an FP4 expert takes an eighth of its fp32 memory."""
    MAPPED = "mapped"
    """Every matrix is a view of its file; for checkpoints that are larger than memory."""


class StoredMatrix(nn.Module):
    """One matrix in stored form; `weight` decodes it anew each time."""

    def __init__(self, stored: Stored, dtype: torch.dtype, mapped: bool) -> None:
        super().__init__()
        self.dtype, self.mapped = dtype, mapped
        self._data_dtype = stored.data.dtype
        self._scales_dtype = None if stored.scales is None else stored.scales.dtype
        # as bytes, so that a cast of the model leaves codes alone; mapped ones are no buffers, so
        # that a move of the model does not read the whole file
        data = stored.data.view(torch.uint8)
        scales = None if stored.scales is None else stored.scales.view(torch.uint8)
        if mapped:
            self._data, self._scales = data, scales
        else:
            self.register_buffer("_data", data, persistent=False)
            self.register_buffer("_scales", scales, persistent=False)

    @property
    def stored(self) -> Stored:
        data, scales = self._data, self._scales
        assert isinstance(data, Tensor)
        if self._scales_dtype is None:
            return Stored(data.view(self._data_dtype), None)
        assert isinstance(scales, Tensor)
        return Stored(data.view(self._data_dtype), scales.view(self._scales_dtype))

    @property
    def weight(self) -> Tensor:
        """The values in the model's dtype."""
        return self.stored.values(self.dtype)


class StoredLinear(StoredMatrix):
    """x W^T."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class StoredEmbedding(StoredMatrix):
    """Rows of a table; only those that are asked for are decoded."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.stored.data).to(self.dtype)


class StoredExperts(nn.Module):
    """The routed experts of a layer; see `moe.Experts`, whose sum it computes."""

    def __init__(self, num_experts: int, limit: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_experts, self.limit, self.dtype = num_experts, limit, dtype
        self.quantize: Callable[[Tensor], Tensor] | None = None
        """Rounds what enters w2, where quantisation is simulated."""

    def matrix(self, which: str, expert: int) -> Stored:
        """`w1`, `w2` or `w3` of one expert."""
        raise NotImplementedError

    def prefetch(self, experts: list[int]) -> None:
        """Told which experts come next."""

    def forward(self, x_Ld: Tensor, routing: Routing) -> Tensor:
        out = torch.zeros_like(widen(x_Ld))
        chosen = routing.experts_LK
        used = chosen.unique().tolist()
        self.prefetch(used)
        for expert in used:
            rows, slots = torch.where(chosen == expert)
            w1, w3, w2 = (self.matrix(w, expert).values(x_Ld.dtype) for w in ("w1", "w3", "w2"))
            x = x_Ld[rows]
            weights = routing.weights_LK[rows, slots]
            hidden = swiglu(x @ w1.T, x @ w3.T, self.limit, weights)
            if self.quantize is not None:
                hidden = self.quantize(hidden)
            out = out.index_add(0, rows, widen(hidden.to(x.dtype) @ w2.T))
        return out


class PackedExperts(StoredExperts):
    """Codes and scales of all experts, stacked in memory as bytes."""

    def put(self, which: str, expert: int, stored: Stored) -> None:
        """Takes in one matrix; the first of each kind makes room for all."""
        parts = [(which, stored.data), (f"{which}_scales", stored.scales)]
        for name, part in parts:
            if part is None:
                continue
            if name not in self._buffers:
                room = torch.empty(self.num_experts, *part.shape, dtype=part.dtype)
                setattr(self, f"{name}_dtype", part.dtype)
                self.register_buffer(name, room.view(torch.uint8), persistent=False)
            self.get_buffer(name)[expert] = part.view(torch.uint8)

    def matrix(self, which: str, expert: int) -> Stored:
        data, scales = self.get_buffer(which)[expert], self._buffers.get(f"{which}_scales")
        data = data.view(getattr(self, f"{which}_dtype"))
        if scales is None:
            return Stored(data, None)
        return Stored(data, scales[expert].view(getattr(self, f"{which}_scales_dtype")))


class MappedExperts(StoredExperts):
    """Experts that stay in their files until a token takes them."""

    def __init__(
        self, reader: Reader, prefix: str, num_experts: int, limit: float, dtype: torch.dtype
    ) -> None:
        super().__init__(num_experts, limit, dtype)
        self.reader, self.prefix = reader, prefix

    def name(self, which: str, expert: int) -> str:
        return f"{self.prefix}.{expert}.{which}.weight"

    def matrix(self, which: str, expert: int) -> Stored:
        return self.reader.map(self.name(which, expert))

    def prefetch(self, experts: list[int]) -> None:
        for expert in experts:
            for which in ("w1", "w3", "w2"):
                self.reader.prefetch(self.name(which, expert))
