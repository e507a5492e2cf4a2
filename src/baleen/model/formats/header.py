"""The headers of safetensors files and of the folders they make up; no torch.

A file is 8 bytes of length, a JSON header, then the tensors' bytes. Everything that a header says
is checked against the file before a byte of it is used, and every complaint names file and tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from baleen.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CHECKSUMS = "baleen.crc32"
"""Key in a file's metadata of a JSON object: tensor name -> CRC-32 of its bytes. Files of others
lack it and are taken as they are."""
BITS = {
    "BOOL": 8,
    "I8": 8,
    "U8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "F32": 32,
    "I64": 64,
    "F64": 64,
    "F4": 4,
}
_MAX_HEADER_BYTES = 100 << 20
_AGAIN = "copy or download the file again"


class TensorEntry(NamedTuple):
    """One tensor of one file."""

    name: str
    dtype: str
    """safetensors' spelling, a key of `BITS`."""
    shape: tuple[int, ...]
    file: Path
    offset: int
    """Of the first byte, from the beginning of the file."""
    size_bytes: int
    crc32: int | None


def read_header(file: Path) -> list[TensorEntry]:
    """Every tensor of a file, in the order of their bytes.

    Raises:
        CheckpointError: the header is damaged, or a tensor lies outside the file or does not fit
            its shape.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(f"{file} cannot be read: it has no whole header", remedy=_AGAIN)
        try:
            header = json.loads(opened.read(length))
            entries = list(_entries(file, header, 8 + length))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} cannot be read: its header is damaged: {error}", remedy=_AGAIN
            ) from error
    entries.sort(key=lambda entry: entry.offset)
    _check_extent(file, entries, size)
    return entries


def _entries(file: Path, header: dict[str, Any], start: int) -> Iterator[TensorEntry]:
    checksums = json.loads((header.pop("__metadata__", None) or {}).get(CHECKSUMS, "{}"))
    for name, tensor in header.items():
        begin, end = (int(offset) for offset in tensor["data_offsets"])
        shape = tuple(int(length) for length in tensor["shape"])
        dtype = tensor["dtype"]
        if dtype not in BITS:
            raise CheckpointError(f"{file}: {name} has the unknown dtype {dtype}")
        expected = math.prod(shape) * BITS[dtype] // 8
        if begin < 0 or end - begin != expected:
            raise CheckpointError(
                f"{file}: {name} has {end - begin} bytes, {dtype} {list(shape)} needs {expected}",
                remedy=_AGAIN,
            )
        yield TensorEntry(name, dtype, shape, file, start + begin, expected, checksums.get(name))


def _check_extent(file: Path, entries: list[TensorEntry], size: int) -> None:
    """Names the tensor in which a file that is too short ends."""
    if not entries or (end := entries[-1].offset + entries[-1].size_bytes) <= size:
        return
    cut = next(entry for entry in entries if entry.offset + entry.size_bytes > size)
    raise CheckpointError(
        f"{file} cannot be read: it ends {end - size} bytes too early, inside {cut.name}",
        remedy=_AGAIN,
    )


def shard_paths(folder: Path) -> list[Path]:
    """The weight files of a model folder, by its index if it has one.

    Raises:
        CheckpointError: there are none, the index is damaged, or a file that it names is missing.
    """
    index = folder / INDEX_FILE
    if index.exists():
        shards = [folder / name for name in sorted(set(read_index(index).values()))]
    else:
        shards = [folder / SINGLE_FILE]
    absent = [path.name for path in shards if not path.exists()]
    if absent:
        raise CheckpointError(
            f"{folder}: {len(absent)} of {len(shards)} weight files are missing: {absent[0]}",
            remedy="name a whole model folder, or download it again",
        )
    return shards


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as an index file says.

    Raises:
        CheckpointError: it is not an index.
    """
    try:
        names = json.loads(index.read_text("utf-8"))["weight_map"]
        if not names or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("weight_map names no files")
        if any(Path(name).name != name for name in names.values()):
            raise ValueError("weight_map leads out of the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index: {error!r}", remedy=_AGAIN) from error
    result: dict[str, str] = names
    return result


def read_headers(folder: Path) -> list[TensorEntry]:
    """Every tensor of a model folder, file by file.

    Raises:
        CheckpointError: a file is missing or damaged, a tensor is there twice, or the index names
            one that its file lacks.
    """
    entries = [entry for path in shard_paths(folder) for entry in read_header(path)]
    seen: dict[str, TensorEntry] = {}
    for entry in entries:
        if entry.name in seen:
            files = f"{seen[entry.name].file.name} and {entry.file.name}"
            raise CheckpointError(f"{folder}: {entry.name} is twice there: in {files}")
        seen[entry.name] = entry
    index = folder / INDEX_FILE
    for name, file in (read_index(index) if index.exists() else {}).items():
        if name not in seen or seen[name].file.name != file:
            raise CheckpointError(
                f"{folder / file}: {name} is missing, {INDEX_FILE} says that it is there",
                remedy=_AGAIN,
            )
    return entries
