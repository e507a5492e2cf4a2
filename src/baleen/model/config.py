"""The configuration of a V4-architecture model: released presets, `config.json` in both spellings.

Field names are those of the released ``config.json``; the comments give the reference code's
symbol. Everything that a run needs is here, nothing is read from the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baleen.errors import ConfigError

if TYPE_CHECKING:
    from baleen.model.cost import CacheBytes, Flops, Parameters


class LayerKind(StrEnum):
    """How a layer sees what lies before its sliding window."""

    SWA = "sliding_attention"
    """Not at all: window only (ratio 0)."""
    CSA = "compressed_sparse_attention"
    """Through overlapping blocks of ratio tokens, the best of which an indexer selects."""
    HCA = "heavily_compressed_attention"
    """Through disjoint large blocks, all of them."""


CSA_RATIO = 4
"""The one ratio whose blocks overlap and are selected by an indexer; any larger ratio is HCA."""


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """Scaling of the compressed branches. Source: YaRN, arXiv 2309.00071, without mscale."""

    factor: float = 16.0
    original_max_position_embeddings: int = 65536
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of one model. Defaults are V4-Flash's."""

    vocab_size: int = 129280
    hidden_size: int = 4096
    num_hidden_layers: int = 43
    num_attention_heads: int = 64
    head_dim: int = 512
    """Width of one query head and of the one latent that is both key and value."""
    qk_rope_head_dim: int = 64
    """The last dimensions of a head, which carry the position."""
    q_lora_rank: int = 1024
    o_groups: int = 8
    o_lora_rank: int = 1024
    sliding_window: int = 128
    """Tokens that a query sees exactly, itself included."""
    compress_ratios: tuple[int, ...] = ()
    """Per layer: 0 is window only, 4 is CSA, larger is HCA. Entries past the last layer are MTP's.
    """
    index_n_heads: int = 64
    index_head_dim: int = 128
    index_topk: int = 512
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    rope_scaling: YarnScaling | None = YarnScaling()
    max_position_embeddings: int = 1048576
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 6
    moe_intermediate_size: int = 2048
    num_hash_layers: int = 3
    """The first layers, whose experts are looked up by token id instead of scored."""
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = 10.0
    """Clamp of gate and up before the product; without it single experts spike in training."""
    hc_mult: int = 4
    """Residual streams of the manifold-constrained hyper-connections (mHC)."""
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    num_nextn_predict_layers: int = 1
    initializer_range: float = 0.02
    bos_token_id: int = 0
    eos_token_id: int = 1
    expert_dtype: str | None = None
    """How routed experts are stored in files: "fp4", "fp8" or None for the model's dtype."""

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """A released model's configuration, or ``nano``, the checkpoint that this package carries.

        Raises:
            ConfigError: no preset has that name; the message names the nearest one.
        """
        if name == "nano":
            from baleen.assets import nano_dir  # the bundled folder is the one truth for its shapes

            return cls.from_hf(nano_dir())
        try:
            return _PRESETS[name]
        except KeyError:
            known = [*_PRESETS, "nano"]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"no model preset named {name!r}", remedy=hint) from None

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any]) -> ModelConfig:
        """Reads ``config.json`` (a folder, the file, or its dict) in the released or in HF's
        spelling.

        Raises:
            ConfigError: the file is missing or not JSON, or the values exclude each other.
        """
        from baleen.model.config_file import read_config

        return read_config(source)

    def to_hf(self) -> dict[str, Any]:
        """The dict of a ``config.json`` in the released spelling; `from_hf` reads it back equal."""
        from baleen.model.config_file import config_dict

        return config_dict(self)

    def flops(self, context: int) -> Flops:
        """Operations of decoding one token at the end of `context` tokens, by part."""
        from baleen.model import cost

        return cost.flops(self, context)

    def cache_bytes(self, context: int, kind: str = "fp8") -> CacheBytes:
        """Bytes that a sequence of `context` tokens keeps, by part; kind as `kv_dtype`."""
        from baleen.model import cost

        return cost.cache_bytes(self, context, kind)

    def parameters(self) -> Parameters:
        """Numbers in the weights, all and those that one token takes."""
        from baleen.model import cost

        return cost.parameters(self)

    def layer_kind(self, layer: int) -> LayerKind:
        ratio = self.compress_ratios[layer]
        if ratio == 0:
            return LayerKind.SWA
        return LayerKind.CSA if ratio == CSA_RATIO else LayerKind.HCA

    def is_hash_layer(self, layer: int) -> bool:
        return layer < self.num_hash_layers

    @property
    def layer_kinds(self) -> list[LayerKind]:
        return [self.layer_kind(layer) for layer in range(self.num_hidden_layers)]

    @property
    def nope_head_dim(self) -> int:
        return self.head_dim - self.qk_rope_head_dim

    @property
    def group_width(self) -> int:
        """Input width of one group of the grouped output projection."""
        return self.num_attention_heads * self.head_dim // self.o_groups


def _check(config: ModelConfig) -> None:
    """Refuses shapes that no model can have, naming the field and its value."""

    def refuse(field: str, why: str) -> None:
        raise ConfigError(f"{field} = {getattr(config, field)!r}: {why}")

    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        wanted = type(field.default)
        if wanted in (int, float) and (
            isinstance(value, bool) or not isinstance(value, (int, wanted))
        ):
            refuse(field.name, f"must be {'a whole number' if wanted is int else 'a number'}")
        if (
            field.name.endswith(("_size", "_dim", "_rank", "_mult", "_heads", "_topk"))
            and value < 1
        ):
            refuse(field.name, "must be at least 1")
    if len(config.compress_ratios) < config.num_hidden_layers:
        refuse("compress_ratios", f"needs {config.num_hidden_layers} entries, one per layer")
    bad_ratios = [r for r in config.compress_ratios if r != 0 and r < CSA_RATIO]
    if bad_ratios:
        refuse("compress_ratios", f"{bad_ratios[0]} is no ratio: 0 (window), 4 (CSA) or more (HCA)")
    if config.qk_rope_head_dim % 2 or config.qk_rope_head_dim > config.head_dim:
        refuse("qk_rope_head_dim", f"must be even and at most head_dim = {config.head_dim}")
    if config.qk_rope_head_dim > config.index_head_dim:
        refuse("index_head_dim", f"must hold qk_rope_head_dim = {config.qk_rope_head_dim}")
    if config.num_attention_heads % config.o_groups:
        refuse("o_groups", f"must divide num_attention_heads = {config.num_attention_heads}")
    if not 1 <= config.num_experts_per_tok <= config.n_routed_experts:
        refuse(
            "num_experts_per_tok", f"must lie in 1..n_routed_experts = {config.n_routed_experts}"
        )


_FLASH = ModelConfig(
    compress_ratios=(0, 0, *(4, 128) * 20, 4, 0),
    expert_dtype="fp4",
)
_PRO = dataclasses.replace(
    _FLASH,
    hidden_size=7168,
    num_hidden_layers=61,
    num_attention_heads=128,
    q_lora_rank=1536,
    o_groups=16,
    compress_ratios=(128, 128, *(4, 128) * 29, 4, 0),
    index_topk=1024,
    n_routed_experts=384,
    moe_intermediate_size=3072,
    routed_scaling_factor=2.5,
)
_PRESETS = {
    "v4-flash": _FLASH,
    "v4-pro": _PRO,
    "v4-flash-base": dataclasses.replace(_FLASH, expert_dtype="fp8"),
    "v4-pro-base": dataclasses.replace(_PRO, expert_dtype="fp8"),
}


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConfigError: the file is missing, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", remedy="name a model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not an object")
    return data
