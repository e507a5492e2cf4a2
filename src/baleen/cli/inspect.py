"""`baleen inspect`: what a model folder holds, read from its headers alone."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from baleen.agent.config import NANO
from baleen.errors import CheckpointError

if TYPE_CHECKING:
    from baleen.model.formats.header import TensorEntry

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
    "expert_dtype",
)
_PARTS = (
    ("draft block", r"^mtp\."),
    ("embedding", r"^embed\."),
    ("head", r"^head\."),
    ("routed experts", r"\.ffn\.experts\."),
    ("shared experts", r"\.ffn\.shared_experts\."),
    ("routers", r"\.ffn\.gate\."),
    ("indexers", r"\.attn\.indexer\."),
    ("compressors", r"\.attn\.compressor\."),
    ("attention", r"\.attn\."),
    ("streams and norms", r"hc_|norm"),
)
_CODES = {"I8": "FP4", "F8_E4M3": "FP8"}


@click.command()
@click.argument("folder", metavar="DIR|nano")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(folder: str, as_json: bool) -> None:
    """Say what is in a model folder: architecture, formats, files, sizes by part.

    \b
    Examples:
      baleen inspect nano
      baleen inspect ./my-model --json
    """
    from baleen.assets import nano_dir

    found = describe(nano_dir() if folder == NANO else Path(folder))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for line in lines(found):
        click.echo(line)


def describe(folder: Path) -> dict[str, Any]:
    """Configuration, files, and totals by part and by type of a model folder.

    Raises:
        CheckpointError: no config, no weights, or a file whose header does not fit its size.
    """
    from baleen.model.formats.header import read_headers, shard_paths

    config = _config(folder / "config.json")
    entries = read_headers(folder)
    files = [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "tensors": sum(entry.file == path for entry in entries),
        }
        for path in shard_paths(folder)
    ]
    return {
        "folder": str(folder),
        "config": {key: config[key] for key in _SHOWN_KEYS if key in config},
        "names": _spelling(entry.name for entry in entries),
        "files": files,
        "tensors": len(entries),
        "bytes": sum(entry.size_bytes for entry in entries),
        "parts": _parts(entries),
        "dtypes": _totals((entry.dtype, entry) for entry in entries),
    }


def _totals(entries: Iterable[tuple[str, TensorEntry]]) -> dict[str, dict[str, int]]:
    """Tensors, stored numbers and bytes by the key beside each entry."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "values": 0, "bytes": 0})
    for key, entry in entries:
        row = totals[key]
        row["tensors"] += 1
        row["values"] += math.prod(entry.shape)
        row["bytes"] += entry.size_bytes
    return dict(sorted(totals.items()))


def _parts(entries: list[TensorEntry]) -> dict[str, dict[str, Any]]:
    """Per part of the model: how it is stored, how many weights, how many bytes with scales."""
    from baleen.model.formats.names import released_name

    held = {released_name(entry.name): entry for entry in entries}
    parts: dict[str, dict[str, Any]] = {}
    for name, entry in held.items():
        part = next((part for part, like in _PARTS if re.search(like, name)), "other")
        row = parts.setdefault(part, {"formats": {}, "values": 0, "bytes": 0})
        row["bytes"] += entry.size_bytes
        if name.endswith(".scale") and name.removesuffix("scale") + "weight" in held:
            continue  # its bytes are counted, its numbers are no weights
        has_scales = name.removesuffix("weight") + "scale" in held
        format = _CODES.get(entry.dtype, entry.dtype) if has_scales else entry.dtype
        values = math.prod(entry.shape) * (2 if format == "FP4" else 1)
        row["values"] += values
        row["formats"][format] = row["formats"].get(format, 0) + values
    return {part: parts[part] for part in (*(p for p, _ in _PARTS), "other") if part in parts}


def _spelling(names: Iterable[str]) -> str:
    """Whose names the tensors carry."""
    names = list(names)
    if any(".self_attn." in name for name in names):
        return "transformers"
    return "mixed" if any(name.startswith("model.") for name in names) else "released"


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The table of what `describe` found."""
    for name, value in found["config"].items():
        yield f"{name:24} {value}"
    yield f"{'names':24} {found['names']}"
    for part, row in found["parts"].items():
        formats = " ".join(sorted(row["formats"], key=row["formats"].get, reverse=True))
        bits = 8 * row["bytes"] / max(1, row["values"])
        yield (
            f"{part:24} {row['values']:>18,} values {row['bytes']:>18,} bytes  {bits:5.2f} bits"
            + (f"  {formats}")
        )
    for dtype, totals in found["dtypes"].items():
        size = f"{totals['bytes']:,} bytes"
        yield f"{dtype:24} {totals['tensors']} tensors, {totals['values']:,} values, {size}"
    for file in found["files"]:
        yield f"{file['name']:40} {file['tensors']} tensors, {file['bytes']:,} bytes"
    yield f"{'total':24} {found['tensors']} tensors, {found['bytes']:,} bytes"


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}", remedy="is it a model folder?") from error
    return config
