"""`baleen inspect` adds up a model folder from its headers, and refuses what is damaged."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from baleen.cli.main import main
from baleen.model import Transformer


def model_folder(root: Path, offsets: tuple[int, int] = (0, 16), data: bytes = b"\0" * 16) -> Path:
    (root / "config.json").write_text('{"model_type": "deepseek_v4", "hidden_size": 4}')
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": offsets}
    header = json.dumps({"__metadata__": {}, "embed.weight": tensor}).encode()
    (root / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return root


def test_inspect_adds_up_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(model_folder(tmp_path))]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == {"model_type": "deepseek_v4", "hidden_size": 4}
    assert found["dtypes"] == {"F32": {"tensors": 1, "values": 4, "bytes": 16}}


def test_inspect_names_the_tensor_that_is_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(model_folder(tmp_path, data=b"\0" * 12))]) == 1
    assert "inside embed.weight" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_inspect_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (model_folder(tmp_path) / name).unlink()
    assert main(["inspect", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert name in err
    assert "model folder" in err


def test_inspect_tells_formats_parts_and_files(
    make_model: Callable[..., Transformer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path, format="fp4", max_shard_bytes=100_000)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = found["parts"]
    experts = 6 * 8 * 3 * 32 * 64
    assert parts["routed experts"] == {
        "formats": {"FP4": experts}, "values": experts, "bytes": experts // 2 + experts // 32
    }  # fmt: skip
    assert parts["shared experts"]["formats"] == {"FP8": 6 * 3 * 32 * 64}
    assert set(parts["attention"]["formats"]) == {"FP8", "BF16", "F32"}
    weights = sum(tensor.numel() for tensor in model.state_dict().values())
    assert sum(part["values"] for part in parts.values()) == weights
    assert sum(part["bytes"] for part in parts.values()) == found["bytes"]
    files = found["files"]
    assert sum(file["tensors"] for file in files) == found["tensors"]
    assert [file["name"] for file in files] == sorted(
        p.name for p in tmp_path.glob("*.safetensors")
    )
    assert main(["inspect", str(tmp_path)]) == 0
    assert "4.25 bits  FP4" in capsys.readouterr().out
