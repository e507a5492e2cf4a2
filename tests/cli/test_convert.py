"""`baleen convert`: formats there and back, bit by bit where nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baleen.cli.main import main
from baleen.model import Transformer
from baleen.model.formats import fp4, fp8

Make = Callable[..., Transformer]


@pytest.fixture
def folder(make_model: Make, tmp_path: Path) -> Path:
    source = tmp_path / "source"
    make_model().save_pretrained(source, format="fp4", max_shard_bytes=100_000)
    (source / "tokenizer.json").write_text("{}")
    (source / "encoding").mkdir()
    (source / "encoding" / "rules.py").write_text("# prompt rules\n")
    return source


def convert(source: Path, target: Path, format: str, *more: str) -> None:
    assert main(["convert", str(source), str(target), "--format", format, *more]) == 0


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_the_same_format_is_copied_bit_by_bit(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    convert(folder, target, "fp4", "--max-shard", "1G")
    before, after = tensors(folder), tensors(target)
    assert before.keys() == after.keys()
    assert all(same(before[name], after[name]) for name in before)
    assert (target / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (target / "tokenizer.json").exists()
    assert (target / "encoding" / "rules.py").exists()
    assert not (target / "model.safetensors.index.json").exists()


def test_fp4_becomes_fp8_without_loss_and_bf16_too(folder: Path, tmp_path: Path) -> None:
    name = "layers.3.ffn.experts.5.w2"
    stored = tensors(folder)
    values = fp4.decode(stored[f"{name}.weight"], stored[f"{name}.scale"])
    convert(folder, tmp_path / "fp8", "fp8")
    eight = tensors(tmp_path / "fp8")
    assert torch.equal(fp8.decode(eight[f"{name}.weight"], eight[f"{name}.scale"]), values)
    convert(folder, tmp_path / "bf16", "bf16")
    assert torch.equal(tensors(tmp_path / "bf16")[f"{name}.weight"].float(), values)


@torch.no_grad()
def test_a_converted_folder_computes_the_same(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "fp32", "fp32", "--max-shard", "300K")
    ids = torch.arange(60).unsqueeze(0)
    before, after = (Transformer.from_pretrained(path) for path in (folder, tmp_path / "fp32"))
    assert torch.equal(before(ids), after(ids))


def test_tensors_that_no_module_uses_go_through(folder: Path, tmp_path: Path) -> None:
    file = folder / "model-00001-of-00009.safetensors"
    file = file if file.exists() else sorted(folder.glob("*.safetensors"))[0]
    held = load_file(file)
    held["mtp.7.strange.weight"] = torch.arange(6).float()
    save_file(held, file)
    convert(folder, tmp_path / "target", "bf16")
    assert tensors(tmp_path / "target")["mtp.7.strange.weight"].tolist() == [0, 1, 2, 3, 4, 5]


def test_it_says_what_became_of_the_bytes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(folder, tmp_path / "target", "fp32", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == 1
    assert found["bytes_after"] > 2 * found["bytes_before"]


def test_a_folder_is_not_converted_onto_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(folder), str(folder), "--format", "bf16"]) == 2
    assert "is the source" in capsys.readouterr().err


def test_damage_is_named_and_leaves_no_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(["convert", str(folder), str(tmp_path / "target"), "--format", "fp8"]) == 1
    assert file.name in capsys.readouterr().err
    assert not list((tmp_path / "target").glob("model*"))
