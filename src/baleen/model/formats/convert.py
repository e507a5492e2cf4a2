"""Rewrites a model folder in another number format without building the model.

Tensors go through one by one, so a checkpoint larger than memory can be converted; those that no
module of ours uses (draft heads of other kinds) go through too.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from baleen.errors import UsageError
from baleen.model.config import ModelConfig
from baleen.model.formats.config_text import config_text
from baleen.model.formats.header import INDEX_FILE
from baleen.model.formats.plan import plan_tensor
from baleen.model.formats.progress import byte_progress
from baleen.model.formats.reader import DTYPES, Entry, Reader
from baleen.model.formats.stored import Format, Stored
from baleen.model.formats.writer import MAX_SHARD_BYTES, Planned, write_folder


class Converted(NamedTuple):
    """What a conversion did."""

    tensors: int
    files: int
    bytes_before: int
    bytes_after: int


def convert_folder(
    source: Path, target: Path, format: str, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Converted:
    """Writes `source` in a format to `target`; the weights of `source` are read once.

    Raises:
        UsageError: the folders are the same, or the format has no place for a tensor's shape.
        CheckpointError: a file of `source` is missing or damaged.
    """
    if target.exists() and target.samefile(source):
        raise UsageError(f"{target} is the source", remedy="name another folder")
    layout = Format.of(format)
    before = (source / "config.json").read_text("utf-8")
    config = ModelConfig.from_hf(source)
    reader = Reader(source)
    planned = list(_plans(reader, layout))
    target.mkdir(parents=True, exist_ok=True)
    with byte_progress(f"writing {target.name}", sum(t.size_bytes for t in planned)) as written:
        files = write_folder(target, planned, max_shard_bytes, written)
    _copy_others(source, target)
    (target / "config.json").write_text(config_text(config, before, layout), "utf-8")
    size = sum(tensor.size_bytes for tensor in planned)
    return Converted(len(planned), len(files), reader.size_bytes, size)


def _plans(reader: Reader, format: Format) -> Iterator[Planned]:
    for name, entry in reader.entries.items():
        yield from plan_tensor(name, lambda name=name: reader.read(name), _like(entry), format)  # type: ignore[misc]


def _like(entry: Entry) -> Stored:
    """The entry's dtypes and shapes, without its bytes."""
    data, scales = (
        None if part is None else torch.empty(part.shape, dtype=DTYPES[part.dtype], device="meta")
        for part in entry
    )
    assert data is not None
    return Stored(data, scales)


def _copy_others(source: Path, target: Path) -> None:
    """Tokenizer, generation defaults and whatever else lies beside the weights."""
    for path in source.iterdir():
        if path.suffix == ".safetensors" or path.name in (INDEX_FILE, "config.json"):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copy2(path, target / path.name)
