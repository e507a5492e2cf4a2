"""Model folders: released names, exact round trips, and errors that name the tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baleen.errors import CheckpointError, ConfigError, UsageError
from baleen.model import ModelConfig, Transformer
from baleen.model.checkpoint import named_tensors

Make = Callable[..., Transformer]


@pytest.fixture
def folder(make_model: Make, tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path, format="fp32")
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_fp32_round_trip_is_exact(make_model: Make, folder: Path) -> None:
    saved, loaded = (
        dict(named_tensors(make_model())),
        dict(named_tensors(Transformer.from_pretrained(folder))),
    )
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


@torch.no_grad()
def test_loaded_model_computes_the_same(make_model: Make, folder: Path) -> None:
    ids = torch.arange(90).unsqueeze(0)
    assert torch.equal(Transformer.from_pretrained(folder)(ids), make_model()(ids))


def test_files_carry_the_released_names_and_dtypes(make_model: Make, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, dtype in {
        "embed.weight": torch.bfloat16,
        "hc_head_fn": torch.float32,
        "layers.2.hc_attn_scale": torch.float32,
        "layers.2.attn.attn_sink": torch.float32,
        "layers.2.attn.kv_norm.weight": torch.bfloat16,
        "layers.2.attn.compressor.ape": torch.float32,
        "layers.2.attn.indexer.compressor.wgate.weight": torch.bfloat16,
        "layers.2.ffn.experts.7.w2.weight": torch.bfloat16,
        "layers.2.ffn.gate.bias": torch.float32,
        "layers.0.ffn.gate.tid2eid": torch.int64,
    }.items():
        assert tensors[name].dtype == dtype, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.3.attn.wkv.weight"), "layers.3.attn.wkv.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected tensor extra"),
        (lambda t: t.update({"norm.weight": torch.zeros(3)}), r"norm.weight has shape \[3\]"),
        (lambda t: t["norm.weight"].fill_(torch.nan), "norm.weight holds NaN"),
    ],
)
def test_a_damaged_folder_names_the_tensor(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        Transformer.from_pretrained(folder)


def test_a_file_that_is_cut_off_names_the_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"ends 100 bytes too early, inside [a-z]+"):
        Transformer.from_pretrained(folder)


def test_a_file_without_a_header_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        Transformer.from_pretrained(folder)


def test_a_flipped_bit_names_the_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin, _ = header["layers.1.attn.wkv.weight"]["data_offsets"]
    data[8 + int.from_bytes(data[:8], "little") + begin] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"layers\.1\.attn\.wkv\.weight is damaged"):
        Transformer.from_pretrained(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        Transformer.from_pretrained(tmp_path)


def test_an_unknown_format_is_refused(make_model: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp5"):
        make_model().save_pretrained(tmp_path, format="fp5")


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
    [("o_groups", 3), ("compress_ratios", [4]), ("hidden_size", 0), ("num_experts_per_tok", 99)],
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
