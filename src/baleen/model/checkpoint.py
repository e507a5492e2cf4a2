"""Model folders: `config.json` plus safetensors under the released tensor names.

The modules carry the released names but for two things: mHC sites are modules here and flat names
in files (`hc_attn.fn` is `hc_attn_fn`), and a layer's experts are stacked here and one by one in
files.
"""

from __future__ import annotations

import json
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from baleen.errors import CheckpointError, UsageError
from baleen.model.config import ModelConfig
from baleen.model.transformer import Transformer

KEPT_FP32 = re.compile(r"(attn_sink|\.ape|hc_\w+|gate\.bias)$")
"""Tensors that released files keep in fp32 whatever the rest is stored in."""
EXPERT = re.compile(r"((?:layers|mtp)\.\d+\.ffn\.experts)\.(\d+)\.(w[123])\.weight")
MTP_COPIES = re.compile(r"mtp\.\d+\.(emb|embed|embed_tokens|head|emb\.tok_emb|shared_head)\..*")
"""The MTP block's copies of the shared embedding and head."""
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CHECKSUMS = "baleen.crc32"
"""Key in a file's metadata of a JSON object: tensor name -> CRC-32 of its bytes. Files of others
lack it and are taken as they are."""
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def file_name(module_name: str) -> str:
    """The released name of a parameter or buffer that is not a stack of experts."""
    return re.sub(r"(hc_attn|hc_ffn|hc_head)\.(fn|base|scale)$", r"\1_\2", module_name)


def named_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model under its released name; experts as views of their stack."""
    for name, tensor in model.state_dict().items():
        stack = re.fullmatch(r"((?:layers|mtp)\.\d+\.ffn\.experts)\.(w[123])", name)
        if stack is None:
            yield file_name(name), tensor
            continue
        for expert, matrix in enumerate(tensor):
            yield f"{stack[1]}.{expert}.{stack[2]}.weight", matrix


def save_checkpoint(model: Transformer, folder: Path, format: str) -> None:
    """Writes config and weights; the weights' file appears whole or not at all."""
    from safetensors.torch import save_file

    if format not in FORMATS:
        raise UsageError(f"format {format!r} cannot be written; known: {', '.join(FORMATS)}")
    dtype = FORMATS[format]
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (
            tensor if not tensor.is_floating_point() or KEPT_FP32.search(name) else tensor.to(dtype)
        ).contiguous()
        for name, tensor in named_tensors(model)
    }
    config = {**model.config.to_hf(), "torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    partial = folder / (SINGLE_FILE + ".partial")
    checksums = json.dumps({name: checksum(tensor) for name, tensor in tensors.items()})
    save_file(tensors, str(partial), metadata={"format": "pt", CHECKSUMS: checksums})
    partial.chmod(0o644)  # the library writes it for its owner alone; others install the wheel
    partial.replace(folder / SINGLE_FILE)


def load_checkpoint(folder: Path, dtype: torch.dtype | None) -> Transformer:
    """A model with a folder's weights; see `Transformer.from_pretrained`.

    Raises:
        CheckpointError: naming the tensor that is missing, unexpected, misshapen or unreadable.
        ConfigError: `config.json` is missing or describes another architecture.
    """
    config = ModelConfig.from_hf(folder)
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to_empty(device="cpu")
    _restore_frequencies(model, config)
    targets = dict(named_tensors(model))
    missing = set(targets)
    foreign_mtp = False
    with torch.no_grad():
        for name, tensor, file in read_tensors(folder):
            if MTP_COPIES.fullmatch(name):
                continue
            target = targets.get(name)
            if name.startswith("mtp.") and (target is None or target.shape != tensor.shape):
                foreign_mtp = True  # another kind of draft head
                continue
            if target is None:
                raise CheckpointError(f"{file}: unexpected tensor {name}")
            if target.shape != tensor.shape:
                raise CheckpointError(
                    f"{file}: {name} has shape {list(tensor.shape)}, config.json implies "
                    f"{list(target.shape)}"
                )
            if not torch.isfinite(tensor.float()).all():
                raise CheckpointError(f"{file}: {name} holds NaN or infinity")
            target.copy_(tensor)
            missing.discard(name)
    drafts = {name for name in targets if name.startswith("mtp.")}
    if foreign_mtp or drafts <= missing:
        if foreign_mtp:
            warnings.warn(
                f"{folder}: the draft head under mtp.* is no MTP block and is left out",
                stacklevel=3,
            )
        model.without_mtp()
        missing -= drafts
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise CheckpointError(f"{folder}: {len(missing)} tensors are missing: {some}")
    return model if dtype is None else model.to(dtype)


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes as they lie in a file."""
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """Every tensor of a folder's shards with its file, one at a time.

    Raises:
        CheckpointError: a file is cut off or damaged; names the tensor where it can be told.
    """
    from safetensors import SafetensorError, safe_open

    for path in _shards(folder):
        try:
            with safe_open(str(path), "pt") as file:
                known = json.loads((file.metadata() or {}).get(CHECKSUMS, "{}"))
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_tensor(name)
                    if name in known and checksum(tensor) != known[name]:
                        raise CheckpointError(
                            f"{path}: {name} is damaged, its checksum differs",
                            remedy="copy or download the file again",
                        )
                    yield name, tensor, path
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {_first_cut_tensor(path) or error}",
                remedy="copy or download the file again",
            ) from error


def _first_cut_tensor(path: Path) -> str | None:
    """Which tensor a file that is too short ends in; None if its header cannot tell."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            held = path.stat().st_size - 8 - length
            header = json.loads(file.read(length)) if held >= 0 else {}
        spans = {name: entry["data_offsets"] for name, entry in header.items() if "dtype" in entry}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    cut = sorted((end, name) for name, (_, end) in spans.items() if end > held)
    return f"it ends {cut[-1][0] - held} bytes too early, inside {cut[0][1]}" if cut else None


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.exists():
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        shards = [folder / name for name in names]
    else:
        shards = [folder / SINGLE_FILE]
    absent = [path.name for path in shards if not path.exists()]
    if absent:
        raise CheckpointError(f"{folder}: {absent[0]} is missing", remedy="name a model folder")
    return shards


def _restore_frequencies(model: Transformer, config: ModelConfig) -> None:
    """Rotary frequencies are derived, not stored: a model that began empty needs them anew."""
    from baleen.model.attention import Attention

    for module in model.modules():
        if isinstance(module, Attention):
            module.set_frequencies(config)
