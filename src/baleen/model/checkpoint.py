"""Model folders: `config.json` plus safetensors under the released tensor names.

The modules carry the released names but for two things: mHC sites are modules here and flat names
in files (`hc_attn.fn` is `hc_attn_fn`), and a layer's experts are stacked here and one by one in
files. What files may look like is in `formats`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from baleen.errors import CheckpointError, UsageError
from baleen.model.config import ModelConfig
from baleen.model.formats.config_text import config_text
from baleen.model.formats.packed import (
    MappedExperts,
    PackedExperts,
    Residence,
    StoredEmbedding,
    StoredExperts,
    StoredLinear,
    StoredMatrix,
)
from baleen.model.formats.plan import plan_tensor
from baleen.model.formats.progress import byte_progress
from baleen.model.formats.reader import DTYPES, Entry, Reader
from baleen.model.formats.stored import KEPT_FP32, Format, Kind, Stored
from baleen.model.formats.writer import MAX_SHARD_BYTES, Planned, write_folder
from baleen.model.moe import Experts
from baleen.model.transformer import Transformer

MTP_COPIES = re.compile(r"mtp\.\d+\.(emb|embed|embed_tokens|head|emb\.tok_emb|shared_head)\..*")
"""The MTP block's copies of the shared embedding and head."""


@dataclass(frozen=True)
class Provenance:
    """What a loaded model remembers of its folder, so that saving it unchanged writes the same."""

    config_text: str
    scales: dict[str, Tensor] = field(default_factory=dict)
    """Of each matrix that was decoded, by released name."""


def file_name(module_name: str) -> str:
    """The released name of a parameter or buffer that is not a stack of experts."""
    return re.sub(r"(hc_attn|hc_ffn|hc_head)\.(fn|base|scale)$", r"\1_\2", module_name)


def named_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Every plain tensor of a model under its released name; experts as views of their stack."""
    for name, tensor in model.state_dict().items():
        stack = re.fullmatch(r"((?:layers|mtp)\.\d+\.ffn\.experts)\.(w[123])", name)
        if stack is None:
            yield file_name(name), tensor
            continue
        for expert, matrix in enumerate(tensor):
            yield f"{stack[1]}.{expert}.{stack[2]}.weight", matrix


def stored_matrices(model: Transformer) -> Iterator[tuple[str, Callable[[], Stored]]]:
    """Every matrix that a model holds in stored form, by released name."""
    for name, module in model.named_modules():
        if isinstance(module, StoredMatrix):
            yield f"{name}.weight", partial(getattr, module, "stored")
        elif isinstance(module, StoredExperts):
            for expert in range(module.num_experts):
                for which in ("w1", "w2", "w3"):
                    yield f"{name}.{expert}.{which}.weight", partial(module.matrix, which, expert)


def save_checkpoint(
    model: Transformer, folder: Path, format: str, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes config and weights; no file appears under its name before it is whole."""
    layout = Format.of(format)
    planned = list(_plans(model, layout))
    folder.mkdir(parents=True, exist_ok=True)
    with byte_progress(f"writing {folder.name}", sum(t.size_bytes for t in planned)) as written:
        write_folder(folder, planned, max_shard_bytes, written)
    before = model.provenance.config_text if model.provenance else None
    text = config_text(model.config, before, layout)
    (folder / "config.json").write_text(text, "utf-8")


def _plans(model: Transformer, format: Format) -> Iterator[Planned]:
    """What a model comes to in a file, in an order that does not depend on how it holds it."""
    hints = model.provenance.scales if model.provenance else {}
    sources: dict[str, Callable[[], Stored]] = dict(stored_matrices(model))
    for name, tensor in named_tensors(model):
        sources[name] = partial(Stored, tensor.detach(), None)
    with torch.device("meta"):
        order = [name for name, _ in named_tensors(Transformer(model.config))]
    for name in order:
        yield from plan_tensor(name, sources[name], sources[name](), format, hints.get(name))


def file_skeleton(
    config: ModelConfig, format: str
) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor that a model of that shape has in a format's files."""
    with torch.device("meta"):
        model = Transformer(config)
    for planned in _plans(model, Format.of(format)):
        yield planned.name, planned.dtype, planned.shape


def load_checkpoint(
    folder: Path, dtype: torch.dtype | None = None, weights: str = Residence.DECODED
) -> Transformer:
    """A model with a folder's weights; see `Transformer.from_pretrained`.

    Raises:
        CheckpointError: naming file and tensor of what is missing, unexpected, misshapen, of the
            wrong dtype, or unreadable.
        ConfigError: `config.json` is missing or describes another architecture.
    """
    config = ModelConfig.from_hf(folder)
    residence = _residence(weights)
    reader = Reader(folder)
    with torch.device("meta"):
        model = Transformer(config)
    _settle_draft(reader, model)
    targets = dict(named_tensors(model))
    _check_names(reader, targets)
    for name, target in targets.items():
        _check_entry(name, reader.entries[name], target)
    loader = _Loader(model, reader, dtype or torch.float32, residence)
    with byte_progress(f"reading {folder.name}", reader.size_bytes) as done:
        loader.fill(done)
    text = (folder / "config.json").read_text("utf-8")
    model.provenance = Provenance(text, loader.scales)
    return model


def _residence(name: str) -> Residence:
    try:
        return Residence(name)
    except ValueError:
        known = ", ".join(Residence)
        raise UsageError(f"weights = {name!r} is unknown; known: {known}") from None


def _settle_draft(reader: Reader, model: Transformer) -> None:
    """Takes the MTP block out of a model whose folder has none, or a draft head of another kind."""
    targets = {name: t for name, t in named_tensors(model) if name.startswith("mtp.")}
    found = [n for n in reader if n.startswith("mtp.") and not MTP_COPIES.fullmatch(n)]
    foreign = [
        name
        for name in found
        if name not in targets or reader.entries[name].shape != tuple(targets[name].shape)
    ]
    if foreign:
        warnings.warn(
            f"{reader.folder}: the draft head under mtp.* is no MTP block and is left out "
            f"({foreign[0]})",
            stacklevel=4,
        )
    if foreign or not found:
        model.without_mtp()


def _check_names(reader: Reader, targets: dict[str, Tensor]) -> None:
    """Compares names before anything is read, and says all that is wrong at once."""
    has_draft = any(name.startswith("mtp.") for name in targets)
    found = {name for name in reader if has_draft or not name.startswith("mtp.")}
    strange = found - targets.keys()
    unexpected = [n for n in reader if n in strange and not MTP_COPIES.fullmatch(n)]
    missing = sorted(targets.keys() - found)
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} tensors are missing: {_some(missing)}")
    if unexpected:
        file = reader.entries[unexpected[0]].data.file.name
        kind = "unexpected tensor" if len(unexpected) == 1 else f"{len(unexpected)} unexpected"
        complaints.append(f"{kind} {_some(unexpected)} in {file}")
    if complaints:
        raise CheckpointError(
            f"{reader.folder}: {'; '.join(complaints)}",
            remedy="config.json and weights belong to different models, or a file is old",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _check_entry(name: str, entry: Entry, target: Tensor) -> None:
    """Refuses a shape or dtype that cannot become the target, from the header alone."""
    file = entry.data.file
    if entry.shape != tuple(target.shape):
        raise CheckpointError(
            f"{file}: {name} has shape {list(entry.shape)}, config.json implies "
            f"{list(target.shape)}"
        )
    stored = DTYPES[entry.data.dtype]
    is_codes = stored.itemsize == 1 and entry.data.dtype in ("I8", "F8_E4M3")
    is_float = stored.is_floating_point or (is_codes and entry.scales is not None)
    if is_float != target.dtype.is_floating_point or (is_codes and entry.scales is None):
        beside = " without scales beside it" if is_codes and entry.scales is None else ""
        wanted = "floating point" if target.dtype.is_floating_point else "an integer type"
        raise CheckpointError(f"{file}: {name} is {entry.data.dtype}{beside}, not {wanted}")


class _Loader:
    """Replaces every meta tensor of a model by one with the folder's values."""

    def __init__(
        self, model: Transformer, reader: Reader, dtype: torch.dtype, residence: Residence
    ) -> None:
        self.model, self.reader, self.dtype, self.residence = model, reader, dtype, residence
        self.scales: dict[str, Tensor] = {}
        self._room: Tensor | None = None
        self._room_used = 0

    def fill(self, done: Callable[[int], None]) -> None:
        if self.residence is not Residence.DECODED:
            self._keep_stored()
        self._make_room()
        targets = dict(named_tensors(self.model))
        packed = self._packed_experts()
        for name in self.reader:
            if name in targets:
                self._decode_into(name, targets[name])
            elif name in packed:
                experts, which, expert = packed[name]
                experts.put(which, expert, self._checked(name))
            done(self.reader.entries[name].size_bytes)
        _restore_frequencies(self.model)

    def _decode_into(self, name: str, target: Tensor) -> None:
        stored = self.reader.read(name)
        values = stored.values(None if stored.scales is None else torch.float32)
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise self._not_finite(name)
        target.copy_(values)
        if stored.scales is not None:
            self.scales[name] = self._keep(stored.scales)

    def _keep(self, scales: Tensor) -> Tensor:
        """A copy in memory that was set aside before the load: thousands of small tensors that
        outlive the large ones around them would keep the allocator from reusing those."""
        if self._room is None:
            kept = (e.scales for e in self.reader.entries.values() if e.scales is not None)
            self._room = torch.empty(sum(e.size_bytes + 16 for e in kept), dtype=torch.uint8)
        begin = -(-self._room_used // 16) * 16
        self._room_used = begin + scales.nbytes
        place = self._room[begin : self._room_used].view(scales.dtype).view(scales.shape)
        return place.copy_(scales)

    def _checked(self, name: str) -> Stored:
        stored = self.reader.read(name)
        parts = [stored.data, stored.scales]
        if any(not torch.isfinite(p.float()).all() for p in parts if p is not None):
            raise self._not_finite(name)
        return stored

    def _not_finite(self, name: str) -> CheckpointError:
        file = self.reader.entries[name].data.file
        return CheckpointError(f"{file}: {name} holds NaN or infinity")

    def _make_room(self) -> None:
        """Empty memory for every parameter and buffer that is still on the meta device."""
        for prefix, module in self.model.named_modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    kept = KEPT_FP32.search(file_name(f"{prefix}.{leaf}"))
                    dtype = torch.float32 if kept else self.dtype
                    room = torch.empty(parameter.shape, dtype=dtype)
                    trains = parameter.requires_grad and self.residence is Residence.DECODED
                    module._parameters[leaf] = nn.Parameter(room, requires_grad=trains)
            for leaf, buffer in module._buffers.items():
                if buffer is not None and buffer.is_meta:
                    module._buffers[leaf] = torch.empty_like(buffer, device="cpu")

    def _keep_stored(self) -> None:
        """Puts modules that hold stored matrices in the place of those that hold values."""
        for name, module in list(self.model.named_modules()):
            weight = f"{name}.weight"
            if isinstance(module, Experts) and self._is_kept(f"{name}.0.w1.weight"):
                self.model.set_submodule(name, self._experts(name, module.limit))
            elif isinstance(module, nn.Linear) and self._is_kept(weight):
                self.model.set_submodule(name, StoredLinear(*self._matrix(weight)))
            elif isinstance(module, nn.Embedding) and self.residence is Residence.MAPPED:
                self.model.set_submodule(name, StoredEmbedding(*self._matrix(weight)))

    def _is_kept(self, name: str) -> bool:
        quantised = self.reader.entries[name].kind is not Kind.PLAIN
        return quantised or self.residence is Residence.MAPPED

    def _matrix(self, name: str) -> tuple[Stored, torch.dtype, bool]:
        mapped = self.residence is Residence.MAPPED
        stored = self.reader.map(name) if mapped else self._checked(name)
        return stored, self.dtype, mapped

    def _experts(self, prefix: str, limit: float) -> StoredExperts:
        count = self.model.config.n_routed_experts
        if self.residence is Residence.MAPPED:
            return MappedExperts(self.reader, prefix, count, limit, self.dtype)
        return PackedExperts(count, limit, self.dtype)

    def _packed_experts(self) -> dict[str, tuple[PackedExperts, str, int]]:
        """Where each expert's matrix goes whose layer keeps them packed."""
        return {
            f"{name}.{expert}.{which}.weight": (module, which, expert)
            for name, module in self.model.named_modules()
            if isinstance(module, PackedExperts)
            for expert in range(module.num_experts)
            for which in ("w1", "w2", "w3")
        }


def _restore_frequencies(model: Transformer) -> None:
    """Rotary frequencies are derived, not stored: a model that began empty needs them anew."""
    from baleen.model.attention import Attention

    for module in model.modules():
        if isinstance(module, Attention):
            module.set_frequencies(model.config)
