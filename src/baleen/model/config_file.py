"""`config.json` <-> `ModelConfig`: the released spelling and transformers' own, read; released,
written.

transformers renames some fields on save (`compress_ratios` becomes `layer_types` +
`compress_rates`, `num_hash_layers` becomes `mlp_layer_types`, `rope_scaling` moves into
`rope_parameters`); both are understood, so a folder saved by either side loads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baleen.errors import ConfigError
from baleen.model.config import CSA_RATIO, LayerKind, ModelConfig, YarnScaling, load_json

_ALIASES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "rope_head_dim": "qk_rope_head_dim",
    "window_size": "sliding_window",
    "n_activated_experts": "num_experts_per_tok",
    "moe_inter_dim": "moe_intermediate_size",
    "n_hash_layers": "num_hash_layers",
    "route_scale": "routed_scaling_factor",
    "num_local_experts": "n_routed_experts",
}
"""The reference code's names, accepted for the released ones."""

_FIXED = {
    "num_key_value_heads": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
"""What this implementation is; a file that says otherwise describes another architecture."""


def read_config(source: str | Path | Mapping[str, Any]) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    if isinstance(source, Mapping):
        data = dict(source)
    else:
        path = Path(source)
        data = load_json(path / "config.json" if path.is_dir() else path)
    model_type = data.get("model_type", "deepseek_v4")
    if model_type != "deepseek_v4":
        raise ConfigError(
            f"model_type {model_type!r} is not deepseek_v4", remedy="use a V4 checkpoint"
        )
    for key, value in _FIXED.items():
        if key in data and data[key] != value:
            raise ConfigError(f"{key} = {data[key]!r} is not supported: V4 has {value!r}")
    for alias, name in _ALIASES.items():
        if alias in data and name not in data:
            data[name] = data[alias]
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    values = {key: data[key] for key in known if data.get(key) is not None}
    values["compress_ratios"] = _ratios(data)
    values["num_hash_layers"] = _num_hash_layers(data)
    values["rope_scaling"] = _scaling(data)
    values.update(_rope_fields(data))
    quantization = data.get("quantization_config") or {}
    if "expert_dtype" in quantization and "expert_dtype" not in data:
        values["expert_dtype"] = quantization["expert_dtype"]
    eos = values.get("eos_token_id")
    if isinstance(eos, list):
        values["eos_token_id"] = eos[0]
    return ModelConfig(**values)


def _ratios(data: Mapping[str, Any]) -> tuple[int, ...]:
    ratios = data.get("compress_ratios")
    if ratios is not None:
        if not isinstance(ratios, (list, tuple)) or any(type(ratio) is not int for ratio in ratios):
            raise ConfigError(f"compress_ratios = {ratios!r}: must be a list of whole numbers")
        return tuple(ratios)
    if data.get("layer_types") is None:
        raise ConfigError(
            "neither compress_ratios nor layer_types is given",
            remedy="add compress_ratios; without it the released models look alike",
        )
    rates = {LayerKind.CSA.value: CSA_RATIO, LayerKind.HCA.value: 128, LayerKind.SWA.value: 0}
    rates.update(data.get("compress_rates") or {})
    try:
        return tuple(int(rates[kind]) for kind in data["layer_types"])
    except KeyError as error:
        raise ConfigError(f"unknown layer type {error.args[0]!r}") from None


def _num_hash_layers(data: Mapping[str, Any]) -> int:
    if data.get("num_hash_layers") is not None:
        count: int = data["num_hash_layers"]  # its type is checked with the other fields
        return count
    kinds = list(data.get("mlp_layer_types") or ["hash_moe"] * 3)
    count = kinds.count("hash_moe")
    if kinds[:count] != ["hash_moe"] * count:
        raise ConfigError(f"mlp_layer_types = {kinds}: hash layers must come first")
    return count


def _compress_rope(data: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = data.get("rope_parameters") or {}
    return nested.get("compress") or data.get("rope_scaling") or nested


def _scaling(data: Mapping[str, Any]) -> YarnScaling | None:
    rope = _compress_rope(data)
    if rope.get("rope_type", rope.get("type", "default")) != "yarn":
        return None
    names = [field.name for field in dataclasses.fields(YarnScaling)]
    return YarnScaling(**{name: rope[name] for name in names if rope.get(name) is not None})


def _rope_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Rope width and bases, wherever the file keeps them."""
    fields: dict[str, Any] = {}
    nested = data.get("rope_parameters") or {}
    if "compress" in nested and "compress_rope_theta" not in data:
        fields["compress_rope_theta"] = float(nested["compress"]["rope_theta"])
    if "main" in nested and "rope_theta" not in data:
        fields["rope_theta"] = float(nested["main"]["rope_theta"])
    if data.get("qk_rope_head_dim") is None and data.get("partial_rotary_factor") is not None:
        head_dim = data.get("head_dim", ModelConfig.head_dim)
        fields["qk_rope_head_dim"] = int(head_dim * data["partial_rotary_factor"])
    return fields


def config_dict(config: ModelConfig) -> dict[str, Any]:
    """See `ModelConfig.to_hf`."""
    data: dict[str, Any] = {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4"}
    data.update(dataclasses.asdict(config))
    data["compress_ratios"] = list(config.compress_ratios)
    data["rope_scaling"] = (
        {"type": "yarn", **dataclasses.asdict(config.rope_scaling)} if config.rope_scaling else None
    )
    data.update(_FIXED)
    if config.expert_dtype is None:
        del data["expert_dtype"]
    return data
