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

from baleen.kernels import grouped_product, product, swiglu
from baleen.kernels.product import decoded
from baleen.kernels.weights import TILE
from baleen.model.formats.reader import Reader
from baleen.model.formats.stored import Stored
from baleen.model.moe import ExpertOrder, Routing


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
        return decoded(*self.stored, self.dtype)


class StoredLinear(StoredMatrix):
    """x W^T."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, *self.stored).to(x.dtype)

    def grouped(self, x_gLI: Tensor) -> Tensor:
        """Each group of rows x[g] times its own share of the outputs, [g, L, O / g]."""
        data, scales = self.stored
        groups, rows = len(x_gLI), len(data) // len(x_gLI)
        if scales is not None and data.dtype != torch.int8:
            if rows % TILE:  # tiles reach from one share into the next
                data, scales = self.weight, None
            else:
                scales = scales.unflatten(0, (groups, -1))
        elif scales is not None:
            scales = scales.unflatten(0, (groups, -1))
        sizes = [x_gLI.shape[1]] * groups
        out = grouped_product(x_gLI.flatten(0, 1), sizes, data.unflatten(0, (groups, -1)), scales)
        return out.view(groups, -1, rows).to(x_gLI.dtype)


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

    def times(self, which: str, x_RI: Tensor, sizes: list[int]) -> Tensor:
        """Rows times their experts' matrices: the first sizes[0] rows belong to expert 0."""
        raise NotImplementedError

    def prefetch(self, experts: list[int]) -> None:
        """Told which experts come next."""

    def forward(self, x_Ld: Tensor, routing: Routing) -> Tensor:
        """As `moe.Experts`, with codes instead of values."""
        order = ExpertOrder.of(routing, self.num_experts)
        self.prefetch([expert for expert, size in enumerate(order.sizes) if size])
        x_Rd = x_Ld[order.tokens_R]
        gate_RI, up_RI = (self.times(which, x_Rd, order.sizes) for which in ("w1", "w3"))
        hidden_RI = swiglu(gate_RI, up_RI, self.limit, order.weights_R)
        if self.quantize is not None:
            hidden_RI = self.quantize(hidden_RI)
        return order.summed(self.times("w2", hidden_RI.to(x_Ld.dtype), order.sizes))


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

    def stack(self, which: str) -> Stored:
        """`w1`, `w2` or `w3` of all experts."""
        data, scales = self.get_buffer(which), self._buffers.get(f"{which}_scales")
        data = data.view(getattr(self, f"{which}_dtype"))
        if scales is None:
            return Stored(data, None)
        return Stored(data, scales.view(getattr(self, f"{which}_scales_dtype")))

    def matrix(self, which: str, expert: int) -> Stored:
        data, scales = self.stack(which)
        return Stored(data[expert], None if scales is None else scales[expert])

    def times(self, which: str, x_RI: Tensor, sizes: list[int]) -> Tensor:
        return grouped_product(x_RI, sizes, *self.stack(which))


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

    def times(self, which: str, x_RI: Tensor, sizes: list[int]) -> Tensor:
        runs = [(e, x) for e, x in enumerate(x_RI.split(sizes)) if len(x)]
        return torch.cat([product(x, *self.matrix(which, e)) for e, x in runs])

    def prefetch(self, experts: list[int]) -> None:
        for expert in experts:
            for which in ("w1", "w3", "w2"):
                self.reader.prefetch(self.name(which, expert))
