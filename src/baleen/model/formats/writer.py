"""Writes a model folder shard by shard, one tensor in memory at a time.

Nothing under its final name is ever half written: shards are written beside it and renamed when all
of them are whole, the index last.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from baleen.model.formats.header import CHECKSUMS, INDEX_FILE, SINGLE_FILE, read_index
from baleen.model.formats.reader import DTYPES

MAX_SHARD_BYTES = 4 << 30
SPELLINGS = {dtype: spelling for spelling, dtype in DTYPES.items()}
PARTIAL = ".partial"


class Planned(NamedTuple):
    """A tensor that will be written: its header now, its bytes when their turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_folder(
    folder: Path,
    tensors: Iterable[Planned],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    written: Callable[[int], None] = lambda size_bytes: None,
    hollow: bool = False,
) -> list[Path]:
    """Writes the weights of a model folder: one file, or shards and their index.

    Weight files that the folder held before and that are not replaced are removed. `written` is
    told of each tensor's bytes. `hollow` files have real headers and holes for bodies: all their
    numbers are zero and take no disk, for measuring what sizes alone do.
    """
    shards = _cut(list(tensors), max_shard_bytes)
    if len(shards) == 1:
        names = [SINGLE_FILE]
    else:
        names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    partials = [folder / (name + PARTIAL) for name in names]
    try:
        for path, shard in zip(partials, shards, strict=True):
            if hollow:
                _write_hollow(path, shard)
            else:
                write_file(path, shard, written)
        _replace(folder, names, shards)
    finally:
        for path in partials:
            path.unlink(missing_ok=True)
    return [folder / name for name in names]


def write_file(
    path: Path, shard: list[Planned], written: Callable[[int], None] = lambda size_bytes: None
) -> None:
    """One safetensors file. Wide elements come first, so that every tensor is aligned."""
    ordered = _aligned(shard)
    checksums = {tensor.name: 0 for tensor in ordered}
    reserved = len(_header(ordered, checksums)) + 10 * len(ordered)
    with path.open("wb") as file:
        _write_header(file, ordered, checksums, reserved)
        for tensor in ordered:
            value = tensor.make()
            assert (value.dtype, tuple(value.shape)) == (tensor.dtype, tensor.shape), tensor.name
            view = memoryview(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            checksums[tensor.name] = zlib.crc32(view)
            file.write(view)
            written(len(view))
        file.seek(0)
        _write_header(file, ordered, checksums, reserved)


def _write_hollow(path: Path, shard: list[Planned]) -> None:
    ordered = _aligned(shard)
    with path.open("wb") as file:
        _write_header(file, ordered, {}, len(_header(ordered, {})))
        file.truncate(file.tell() + sum(tensor.size_bytes for tensor in ordered))


def _aligned(shard: list[Planned]) -> list[Planned]:
    return sorted(shard, key=lambda tensor: -tensor.dtype.itemsize)


def _header(tensors: list[Planned], checksums: dict[str, int]) -> bytes:
    metadata = {"format": "pt", CHECKSUMS: json.dumps(checksums)}
    header: dict[str, object] = {"__metadata__": metadata}
    begin = 0
    for tensor in tensors:
        end = begin + tensor.size_bytes
        header[tensor.name] = {
            "dtype": SPELLINGS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    return json.dumps(header, separators=(",", ":")).encode()


def _write_header(
    file: BinaryIO, tensors: list[Planned], checksums: dict[str, int], reserved: int
) -> None:
    """The header padded with blanks, so that checksums known later fit in its place."""
    length = reserved + -reserved % 8
    file.write(length.to_bytes(8, "little"))
    file.write(_header(tensors, checksums).ljust(length))


def _cut(tensors: list[Planned], max_shard_bytes: int) -> list[list[Planned]]:
    """Consecutive tensors, as many to a shard as fit; one that fits into none has its own."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size_bytes
    return shards


def _replace(folder: Path, names: list[str], shards: list[list[Planned]]) -> None:
    """Gives the shards their names; what the folder held before goes when they are in place."""
    index = folder / INDEX_FILE
    before = set(read_index(index).values()) if index.exists() else {SINGLE_FILE}
    for name in names:
        (folder / (name + PARTIAL)).replace(folder / name)
    if len(shards) > 1:
        pairs = zip(names, shards, strict=True)
        weight_map = {tensor.name: name for name, shard in pairs for tensor in shard}
        total = sum(tensor.size_bytes for shard in shards for tensor in shard)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        partial = folder / (INDEX_FILE + PARTIAL)
        partial.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        partial.replace(index)
    else:
        index.unlink(missing_ok=True)
    for name in before - set(names):
        (folder / name).unlink(missing_ok=True)
