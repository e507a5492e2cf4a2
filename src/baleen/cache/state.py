"""Everything that a sequence needs to go on: per layer the window, blocks, and half-built blocks.

A layer holds
- ``window`` [B, W-1, D]: the last W-1 rotated latents, each both key and value;
- ``compressor.tail`` [B, K, 2kc]: content and gate projections of the tokens that a coming block
  may still need (2m-1 tokens where blocks overlap, m-1 where they do not);
- ``compressor.entries``: finished blocks; CSA layers hold the same twice, once for the indexer.

Windows and tails are replaced, never written into, and block lists only grow. So a mark is a
handful of references, and rolling back to it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from baleen.cache.entries import EntryList
from baleen.cache.span import Span
from baleen.errors import ConfigError, UsageError

FORMAT_VERSION = 1
KV_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LayerShape(NamedTuple):
    """What one layer's state must hold."""

    head_dim: int
    ratio: int
    """Tokens per block; 0 for a window-only layer."""
    overlap: bool
    """Whether a block also takes the previous block's tokens (CSA)."""
    index_head_dim: int
    """Width of the indexer's blocks; 0 where all blocks are attended."""


@dataclass
class CompressorState:
    """Finished blocks and the tokens that the next block is made of."""

    tail: Tensor
    entries: EntryList

    @classmethod
    def empty(
        cls, batch_size: int, shape: LayerShape, width: int, dtype: torch.dtype
    ) -> CompressorState:
        factor = 2 if shape.overlap else 1
        tail = torch.zeros(batch_size, factor * shape.ratio - 1, 2 * factor * width)
        tail[..., factor * width :] = -torch.inf  # a gate of -inf: tokens before the first weigh 0
        return cls(tail, EntryList(batch_size, width, dtype))

    def advance(self, projected_BTw: Tensor, span: Span) -> Tensor:
        """Joins the tail with this call's projections, keeps the new tail, returns the whole."""
        joined = torch.cat([self.tail, projected_BTw], dim=1)
        self.tail = last_tokens(joined, span, self.tail.shape[1])
        return joined


def last_tokens(joined_BSw: Tensor, span: Span, keep: int) -> Tensor:
    """The `keep` tokens that end at each row's last real one, of a tail of `keep` joined with a
    call.
    """
    if span.start is not None:
        last = joined_BSw[:, joined_BSw.shape[1] - keep :]
        return last if torch.is_grad_enabled() else last.clone()  # a view would pin the whole call
    index = span.counts_B.unsqueeze(1) + torch.arange(keep)
    return joined_BSw[torch.arange(len(joined_BSw)).unsqueeze(1), index]


@dataclass
class LayerState:
    """One layer's share of a `State`."""

    window: Tensor
    compressor: CompressorState | None
    indexer: CompressorState | None

    def compressors(self) -> list[CompressorState]:
        return [part for part in (self.compressor, self.indexer) if part is not None]


class Mark(NamedTuple):
    """A point to roll back to; cheap, and valid as long as its state lives."""

    lengths_B: Tensor
    windows: list[Tensor]
    tails: list[Tensor]
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
        if kv_dtype not in KV_DTYPES:
            raise ConfigError(f"kv_dtype {kv_dtype!r} is not one of {', '.join(KV_DTYPES)}")
        self.kv_dtype, self.max_len = kv_dtype, max_len
        dtype = KV_DTYPES[kv_dtype]
        self.lengths_B = torch.zeros(batch_size, dtype=torch.int64)
        self.layers = [_empty_layer(shape, window, batch_size, dtype) for shape in shapes]

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
        parts = self._parts()
        return Mark(
            self.lengths_B,
            [layer.window for layer in self.layers],
            [part.tail for part in parts],
            [part.entries.counts_B for part in parts],
        )

    def rollback(self, mark: Mark) -> None:
        """Returns to a mark taken on this state, bit for bit; later marks become invalid."""
        self.lengths_B = mark.lengths_B
        for layer, window in zip(self.layers, mark.windows, strict=True):
            layer.window = window
        for part, tail, counts in zip(self._parts(), mark.tails, mark.counts, strict=True):
            part.tail = tail
            part.entries.truncate(counts)

    def select(self, rows: Tensor) -> State:
        """A copy with the given rows, in that order; a row taken many times is a forked prefix."""
        taken = State.__new__(State)
        taken.kv_dtype, taken.max_len = self.kv_dtype, self.max_len
        taken.lengths_B = self.lengths_B[rows]
        taken.layers = [
            LayerState(
                layer.window[rows],
                *(
                    part and CompressorState(part.tail[rows], part.entries.select(rows))
                    for part in (layer.compressor, layer.indexer)
                ),
            )
            for layer in self.layers
        ]
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
            layer.window = tensors[f"{number}.window"]
            for kind, part in _named_parts(layer):
                part.tail = tensors[f"{number}.{kind}.tail"]
                part.entries.data = tensors[f"{number}.{kind}.entries"]
                part.entries.truncate(tensors[f"{number}.{kind}.entries.counts"])
        return header

    def _parts(self) -> list[CompressorState]:
        return [part for layer in self.layers for part in layer.compressors()]

    def _tensors(self, trimmed: bool = False) -> list[tuple[str, Tensor]]:
        named: list[tuple[str, Tensor]] = []
        for number, layer in enumerate(self.layers):
            named.append((f"{number}.window", layer.window))
            for kind, part in _named_parts(layer):
                entries = part.entries
                named.append((f"{number}.{kind}.tail", part.tail))
                data = entries.values_BMw if trimmed else entries.data
                named.append((f"{number}.{kind}.entries", data))
                if trimmed:
                    named.append((f"{number}.{kind}.entries.counts", entries.counts_B))
        return named


def _named_parts(layer: LayerState) -> list[tuple[str, CompressorState]]:
    named = (("compressor", layer.compressor), ("indexer", layer.indexer))
    return [(name, part) for name, part in named if part is not None]


def _empty_layer(shape: LayerShape, window: int, batch_size: int, dtype: torch.dtype) -> LayerState:
    def compressor(width: int) -> CompressorState | None:
        if not shape.ratio or not width:
            return None
        return CompressorState.empty(batch_size, shape, width, dtype)

    return LayerState(
        torch.zeros(batch_size, window - 1, shape.head_dim, dtype=dtype),
        compressor(shape.head_dim),
        compressor(shape.index_head_dim),
    )
