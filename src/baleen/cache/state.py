"""Everything that a sequence needs to go on: per layer the window, blocks, and half-built blocks.

A layer holds
- ``window`` [B, W, D]: a ring of the last W rotated latents, each both key and value;
- ``compressor.pending``: what the next block is made of, of a fixed size;
- ``compressor.entries``: finished blocks; CSA layers hold the same twice, once for the indexer.

Rings and sums are copied before they change under a mark, and block lists only grow. So a mark is a
handful of references, and rolling back to it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from baleen.cache.blocks import DisjointState, OverlapState
from baleen.cache.entries import EntryList
from baleen.cache.slots import LatentRing, Slots
from baleen.cache.span import Span
from baleen.errors import ConfigError, UsageError
from baleen.kernels import Kind, Layout

FORMAT_VERSION = 2
KV_KINDS = {
    "fp32": (Kind.FP32, Kind.FP32),
    "bf16": (Kind.BF16, Kind.BF16),
    "fp8": (Kind.FP8, Kind.FP4),
}
"""How a cache keeps latents and the indexer's keys."""
CSA_PAGE = 64
HCA_PAGE = 8
"""Blocks to a packed page: 256 and 1024 tokens at the released ratios."""


class LayerShape(NamedTuple):
    """What one layer's state must hold."""

    head_dim: int
    ratio: int
    """Tokens per block; 0 for a window-only layer."""
    overlap: bool
    """Whether a block also takes the previous block's tokens (CSA)."""
    index_head_dim: int
    """Width of the indexer's blocks; 0 where all blocks are attended."""
    rope_dim: int = 0
    """Last numbers of a latent, which a packed entry keeps in bf16."""


@dataclass
class LayerState:
    """One layer's share of a `State`."""

    window: LatentRing
    compressor: OverlapState | DisjointState | None
    indexer: OverlapState | None

    @classmethod
    def empty(
        cls, shape: LayerShape, window: int, batch_size: int, kv: str, max_len: int | None
    ) -> LayerState:
        kind, index_kind = KV_KINDS[kv]
        width, rope, ratio = shape.head_dim, shape.rope_dim, shape.ratio
        ring = LatentRing.empty(batch_size, Layout(kind, width, rope, window))
        most = max_len // ratio if max_len is not None and ratio else None
        compressor: OverlapState | DisjointState | None = None
        indexer = None
        if shape.overlap:
            blocks = Layout(kind, width, rope, CSA_PAGE)
            keys = Layout(index_kind, shape.index_head_dim, 0, CSA_PAGE)
            compressor = OverlapState.empty(batch_size, ratio, blocks, most)
            indexer = OverlapState.empty(batch_size, ratio, keys, most)
        elif ratio:
            blocks = Layout(kind, width, rope, HCA_PAGE)
            compressor = DisjointState.empty(batch_size, ratio, blocks, most)
        return cls(ring, compressor, indexer)

    def parts(self) -> list[tuple[str, OverlapState | DisjointState]]:
        """The compressors' states by name."""
        named = (("compressor", self.compressor), ("indexer", self.indexer))
        return [(name, part) for name, part in named if part is not None]

    def select(self, rows: Tensor) -> LayerState:
        return LayerState(
            self.window.select(rows),
            self.compressor and self.compressor.select(rows),
            self.indexer and self.indexer.select(rows),
        )


class Mark(NamedTuple):
    """A point to roll back to; cheap, and valid as long as its state lives."""

    lengths_B: Tensor
    slots: list[Tensor]
    counts: list[Tensor]


class State:
    """The cached past of a batch of sequences, whose rows may differ in length.

    ``lengths_B`` counts the tokens held per row. Use one state per batch; `Transformer.new_state`
    makes one that fits its model.
    """

    def __init__(
        self,
        shapes: list[LayerShape],
        window: int,
        batch_size: int,
        kv_dtype: str = "fp32",
        max_len: int | None = None,
    ) -> None:
        if kv_dtype not in KV_KINDS:
            raise ConfigError(f"kv_dtype {kv_dtype!r} is not one of {', '.join(KV_KINDS)}")
        self.kv_dtype, self.max_len = kv_dtype, max_len
        self.lengths_B = torch.zeros(batch_size, dtype=torch.int64)
        self.layers = [
            LayerState.empty(shape, window, batch_size, kv_dtype, max_len) for shape in shapes
        ]

    @property
    def batch_size(self) -> int:
        return len(self.lengths_B)

    @property
    def nbytes(self) -> int:
        """Bytes really allocated, spare capacity of the block lists included."""
        return sum(tensor.nbytes for _, tensor in self._tensors())

    def advance(self, span: Span) -> None:
        """Counts the tokens of a call that every layer has taken in."""
        self.lengths_B = span.starts_B + span.counts_B

    def check_room(self, width: int) -> None:
        """Refuses a call that would outgrow `max_len`, before it changes anything."""
        end = int(self.lengths_B.max()) + width
        if self.max_len is not None and end > self.max_len:
            raise UsageError(f"{end} tokens exceed this state's max_len of {self.max_len}")

    def mark(self) -> Mark:
        """Remembers this point; see `rollback`."""
        return Mark(
            self.lengths_B,
            [slots.mark() for slots in self._slots()],
            [entries.counts_B for entries in self._entries()],
        )

    def rollback(self, mark: Mark) -> None:
        """Returns to a mark taken on this state, bit for bit; later marks become invalid."""
        self.lengths_B = mark.lengths_B
        for slots, marked in zip(self._slots(), mark.slots, strict=True):
            slots.rollback(marked)
        for entries, counts in zip(self._entries(), mark.counts, strict=True):
            entries.truncate(counts)

    def select(self, rows: Tensor) -> State:
        """A copy with the given rows, in that order; a row taken many times is a forked prefix."""
        taken = State.__new__(State)
        taken.kv_dtype, taken.max_len = self.kv_dtype, self.max_len
        taken.lengths_B = self.lengths_B[rows]
        taken.layers = [layer.select(rows) for layer in self.layers]
        return taken

    def save(self, path: str | Path, extra: dict[str, str] | None = None) -> None:
        """Writes the state as safetensors with `extra` strings; replaces the file atomically."""
        from safetensors.torch import save_file

        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors(trimmed=True)}
        tensors["lengths"] = self.lengths_B
        header = {"version": str(FORMAT_VERSION), "kv_dtype": self.kv_dtype, **(extra or {})}
        save_file(tensors, str(partial), metadata=header)
        partial.replace(target)

    def load(self, path: str | Path) -> dict[str, str]:
        """Fills this state from a file that a state of the same shape wrote; returns its strings.

        Raises:
            ConfigError: the file is of another version, cache kind or model.
        """
        from safetensors import safe_open

        with safe_open(str(path), "pt") as file:
            header: dict[str, str] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        held = {"version": str(FORMAT_VERSION), "kv_dtype": self.kv_dtype}
        for key, value in held.items():
            if header.get(key) != value:
                raise ConfigError(f"{path}: {key} is {header.get(key)!r}, this state has {value!r}")
        mine = dict(self._tensors())
        expected = {*mine, "lengths"} | {f"{name}.counts" for name in mine if "entries" in name}
        if set(tensors) != expected or any(
            tensors[name].shape[2:] != tensor.shape[2:] for name, tensor in mine.items()
        ):
            raise ConfigError(f"{path} was saved by a model of another shape")
        self.lengths_B = tensors["lengths"]
        for number, layer in enumerate(self.layers):
            layer.window.replace(tensors[f"{number}.window"])
            for kind, part in layer.parts():
                part.pending.replace(tensors[f"{number}.{kind}.pending"])
                part.entries.data = tensors[f"{number}.{kind}.entries"]
                part.entries.truncate(tensors[f"{number}.{kind}.entries.counts"])
        return header

    def _slots(self) -> list[Slots]:
        found: list[Slots] = []
        for layer in self.layers:
            found.append(layer.window)
            found += [part.pending for _, part in layer.parts()]
        return found

    def _entries(self) -> list[EntryList]:
        return [part.entries for layer in self.layers for _, part in layer.parts()]

    def _tensors(self, trimmed: bool = False) -> list[tuple[str, Tensor]]:
        named: list[tuple[str, Tensor]] = []
        for number, layer in enumerate(self.layers):
            named.append((f"{number}.window", layer.window.data))
            for kind, part in layer.parts():
                entries = part.entries
                named.append((f"{number}.{kind}.pending", part.pending.data))
                data = entries.used if trimmed else entries.data
                named.append((f"{number}.{kind}.entries", data))
                if trimmed:
                    named.append((f"{number}.{kind}.entries.counts", entries.counts_B))
        return named
