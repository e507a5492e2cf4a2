"""A model folder under released names, read one tensor at a time.

`Reader` looks at headers only; tensors are read when they are asked for, into memory of their own,
so that a load holds the result and one tensor, whatever the size of the shards. `map` gives a view
of the file instead, of which the kernel reads what is touched and may drop again.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from baleen.errors import CheckpointError
from baleen.model.formats.header import TensorEntry, read_headers
from baleen.model.formats.names import released_name, scale_name, stacked_experts
from baleen.model.formats.stored import Kind, Stored, check_scales

DTYPES = {
    "BOOL": torch.bool,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}


class Entry(NamedTuple):
    """One tensor of a folder: where it is, and where its scales are."""

    data: TensorEntry
    scales: TensorEntry | None

    @property
    def kind(self) -> Kind:
        if self.scales is None:
            return Kind.PLAIN
        return Kind.FP4 if self.data.dtype == "I8" else Kind.FP8

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values, however they are stored."""
        if self.kind is not Kind.FP4:
            return self.data.shape
        return (*self.data.shape[:-1], self.data.shape[-1] * 2)

    @property
    def size_bytes(self) -> int:
        return self.data.size_bytes + (self.scales.size_bytes if self.scales else 0)


class Reader:
    """The tensors of one folder; iterates over their released names in the order of the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = _by_released_name(read_headers(folder))
        self._maps: dict[Path, mmap.mmap] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries.values())

    def read(self, name: str) -> Stored:
        """A tensor in memory of its own; its checksum is compared if the file has one.

        Raises:
            CheckpointError: the bytes are damaged, or codes and scales do not fit together.
        """
        data, scales = self.entries[name]
        return _joined(f"{data.file}: {name}", _read(data), _read(scales) if scales else None)

    def map(self, name: str) -> Stored:
        """A tensor as a view of its file; writing to it changes memory, never the file."""
        data, scales = self.entries[name]
        return _joined(
            f"{data.file}: {name}", self._map(data), self._map(scales) if scales else None
        )

    def prefetch(self, name: str) -> None:
        """Lets the kernel begin to read a mapped tensor; returns at once."""
        for entry in self.entries[name]:
            if entry is not None and entry.file in self._maps:
                begin = entry.offset - entry.offset % mmap.PAGESIZE
                size = entry.offset + entry.size_bytes - begin
                self._maps[entry.file].madvise(mmap.MADV_WILLNEED, begin, size)

    def _map(self, entry: TensorEntry) -> Tensor:
        if entry.file not in self._maps:
            with entry.file.open("rb") as file:
                # a private copy-on-write mapping: torch has no read-only tensors
                self._maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        dtype = DTYPES[entry.dtype]
        if entry.offset % dtype.itemsize:
            return _read(entry)  # a file whose writer did not align it
        count = entry.size_bytes // dtype.itemsize
        mapped = self._maps[entry.file]
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=entry.offset).view(
            entry.shape
        )


def _read(entry: TensorEntry) -> Tensor:
    raw = torch.empty(entry.size_bytes, dtype=torch.uint8)
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.offset)
        view, filled = memoryview(raw.numpy().data), 0
        while filled < len(view) and (count := file.readinto(view[filled:])):
            filled += count
    if filled < entry.size_bytes:
        raise CheckpointError(f"{entry.file} ends inside {entry.name}: it shrank while it was read")
    if entry.crc32 is not None and zlib.crc32(view) != entry.crc32:
        raise CheckpointError(
            f"{entry.file}: {entry.name} is damaged, its checksum differs",
            remedy="copy or download the file again",
        )
    return raw.view(DTYPES[entry.dtype]).view(entry.shape)


def _joined(name: str, data: Tensor, scales: Tensor | None) -> Stored:
    stored = Stored(data, scales)
    check_scales(name, stored)
    return stored


def _by_released_name(found: list[TensorEntry]) -> dict[str, Entry]:
    """Every tensor under its released name, stacks of experts cut into their matrices."""
    named: dict[str, TensorEntry] = {}
    for entry in found:
        for name, part in _parts(entry):
            if name in named:
                raise CheckpointError(
                    f"{entry.file}: {entry.name} and {named[name].name} are both {name}"
                )
            named[name] = part
    scales = {scale_name(name): name for name in named if name.endswith(".weight")}
    entries = {}
    for name, entry in named.items():
        if name in scales:
            continue  # stands beside its matrix
        beside = named.get(scale_name(name)) if name.endswith(".weight") else None
        entries[name] = Entry(entry, beside)
    return entries


def _parts(entry: TensorEntry) -> Iterator[tuple[str, TensorEntry]]:
    name = released_name(entry.name)
    stack = stacked_experts(name)
    if stack is None:
        yield name, entry
        return
    if len(entry.shape) != 3 or entry.shape[1] % len(stack.matrices):
        raise CheckpointError(f"{entry.file}: {entry.name} {list(entry.shape)} stacks no experts")
    rows = entry.shape[1] // len(stack.matrices)
    size = entry.size_bytes // (entry.shape[0] * len(stack.matrices))
    for expert in range(entry.shape[0]):
        for number, part in enumerate(stack.names(expert)):
            offset = entry.offset + (expert * len(stack.matrices) + number) * size
            shape = (rows, entry.shape[2])
            yield (
                part,
                entry._replace(shape=shape, offset=offset, size_bytes=size, crc32=None),
            )
