"""`baleen inspect`: what a model folder holds, read from its headers alone."""

from __future__ import annotations

import json
import math
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import click

from baleen.agent.config import NANO
from baleen.errors import CheckpointError

_SHOWN_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "sliding_window",
    "compress_ratios",
    "index_topk",
    "n_routed_experts",
    "num_experts_per_tok",
    "vocab_size",
    "max_position_embeddings",
)
_BITS = {"BOOL": 8, "F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "F4": 4}
_MAX_HEADER_BYTES = 100 << 20


@click.command()
@click.argument("folder", metavar="DIR|nano")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(folder: str, as_json: bool) -> None:
    """Say what is in a model folder: architecture, tensors, sizes."""
    path = (
        Path(str(resources.files("baleen") / "assets" / NANO)) if folder == NANO else Path(folder)
    )
    found = describe(path)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for name, value in found["config"].items():
        click.echo(f"{name:24} {value}")
    for dtype, totals in found["dtypes"].items():
        size = f"{totals['bytes']:,} bytes"
        click.echo(f"{dtype:24} {totals['tensors']} tensors, {totals['values']:,} values, {size}")
    click.echo(f"{'total':24} {found['tensors']} tensors, {found['bytes']:,} bytes")


def describe(folder: Path) -> dict[str, Any]:
    """Configuration and tensor totals of a model folder.

    Raises:
        CheckpointError: no config, no weights, or a file whose header does not fit its size.
    """
    config = _config(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} holds no .safetensors file", remedy="is it a model folder?"
        )
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "values": 0, "bytes": 0})
    for file in files:
        for tensor in tensors(file):
            begin, end = tensor["data_offsets"]
            row = totals[tensor["dtype"]]
            row["tensors"] += 1
            row["values"] += math.prod(tensor["shape"])
            row["bytes"] += end - begin
    return {
        "folder": str(folder),
        "config": {key: config[key] for key in _SHOWN_KEYS if key in config},
        "files": [file.name for file in files],
        "tensors": sum(row["tensors"] for row in totals.values()),
        "bytes": sum(row["bytes"] for row in totals.values()),
        "dtypes": dict(sorted(totals.items())),
    }


def tensors(file: Path) -> Iterator[Mapping[str, Any]]:
    """The header entries of a safetensors file, each checked against the file's size.

    Raises:
        CheckpointError: the header is damaged or a tensor lies outside the file; names the tensor.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(f"{file} has no readable header", remedy="fetch the file again")
        try:
            header = json.loads(opened.read(length))
        except ValueError as error:
            raise CheckpointError(
                f"the header of {file} is damaged: {error}", remedy="fetch the file again"
            ) from error
    for name, tensor in header.items():
        if name != "__metadata__":
            _check(file, name, tensor, size - 8 - length)
            yield tensor


def _check(file: Path, name: str, tensor: Mapping[str, Any], data_bytes: int) -> None:
    begin, end = tensor["data_offsets"]
    bits = _BITS.get(tensor["dtype"], 8)  # all FP8 kinds, I8 and U8 have 8
    expected = math.prod(tensor["shape"]) * bits // 8
    if not 0 <= begin <= end <= data_bytes or end - begin != expected:
        raise CheckpointError(
            f"tensor {name} of {file} has {end - begin} bytes at {begin}, its shape needs "
            f"{expected}, the file holds {data_bytes}",
            remedy="fetch the file again",
        )


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}", remedy="is it a model folder?") from error
    return config
