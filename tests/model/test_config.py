"""Configurations: presets, files in both spellings, and shapes that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from baleen.errors import ConfigError
from baleen.model import ModelConfig, Transformer

Make = Callable[..., Transformer]


@pytest.fixture
def folder(make_model: Make, tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path, format="fp32")
    return tmp_path


def test_config_survives_its_file(folder: Path, make_model: Make) -> None:
    assert ModelConfig.from_hf(folder) == make_model().config


def test_transformers_own_spelling_is_read(make_model: Make) -> None:
    transformers = pytest.importorskip("transformers")
    config = make_model().config
    data = config.to_hf()
    data["compress_ratios"] = [r if r in (0, 4) else 128 for r in data["compress_ratios"]]
    theirs = transformers.DeepseekV4Config(**data).to_dict()
    assert "compress_ratios" not in theirs
    assert ModelConfig.from_hf(json.loads(json.dumps(theirs))) == ModelConfig.from_hf(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("o_groups", 3),
        ("compress_ratios", [4]),
        ("compress_ratios", [0, "four"]),
        ("hidden_size", 0),
        ("hidden_size", "128"),
        ("head_dim", 64.5),
        ("num_hash_layers", True),
        ("rms_norm_eps", "small"),
        ("num_experts_per_tok", 99),
    ],
)
def test_impossible_shapes_name_the_field(make_model: Make, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} = "):
        ModelConfig.from_hf({**make_model().config.to_hf(), field: value})


def test_presets_have_the_released_schedules() -> None:
    flash, pro = ModelConfig.preset("v4-flash"), ModelConfig.preset("v4-pro")
    kinds = [kind.value.split("_")[0] for kind in flash.layer_kinds]
    assert [kinds.count(k) for k in ("sliding", "compressed", "heavily")] == [2, 21, 20]
    kinds = [kind.value.split("_")[0] for kind in pro.layer_kinds]
    assert [kinds.count(k) for k in ("sliding", "compressed", "heavily")] == [0, 30, 31]
    with pytest.raises(ConfigError, match="v4-flash"):
        ModelConfig.preset("v4-flsh")
