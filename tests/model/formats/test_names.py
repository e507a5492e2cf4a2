"""Every spelling of the tensors' names, taken from transformers itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baleen.errors import CheckpointError
from baleen.model import Transformer
from baleen.model.checkpoint import named_tensors
from baleen.model.formats.names import released_name

transformers = pytest.importorskip("transformers")
Make = Callable[..., Transformer]
RATIOS = (0, 4, 128, 4)


@pytest.fixture
def peer() -> torch.nn.Module:
    """transformers' own model with random weights, sinks and biases too."""
    config = transformers.DeepseekV4Config(
        vocab_size=128,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=32,
        qk_rope_head_dim=8,
        partial_rotary_factor=0.25,
        q_lora_rank=32,
        o_groups=2,
        o_lora_rank=16,
        sliding_window=16,
        compress_ratios=list(RATIOS),
        index_n_heads=32,
        index_head_dim=16,
        index_topk=64,
        n_routed_experts=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        num_hash_layers=1,
        rope_scaling={"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 65536},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.DeepseekV4ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("tid2eid"):
                order = torch.rand(buffer.shape[0], 4).argsort(-1)
                buffer.copy_(order[:, :2])
            elif name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
    return model


@torch.no_grad()
def assert_computes_the_same(folder: Path, peer: torch.nn.Module, weights: str) -> None:
    ids = torch.arange(128).unsqueeze(0)
    model = Transformer.from_pretrained(folder, weights=weights)
    expected = peer(input_ids=ids, use_cache=False).logits
    assert (model(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("weights", ["decoded", "packed", "mapped"])
@pytest.mark.parametrize("max_shard_size", ["10GB", "100KB"])
def test_what_transformers_saves_loads(
    peer: torch.nn.Module, tmp_path: Path, max_shard_size: str, weights: str
) -> None:
    peer.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "100KB")
    assert_computes_the_same(tmp_path, peer, weights)


def test_transformers_own_names_in_memory_load(peer: torch.nn.Module, tmp_path: Path) -> None:
    peer.config.save_pretrained(tmp_path)
    tensors = {name: tensor.contiguous() for name, tensor in peer.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert any(name.endswith("experts.gate_up_proj") for name in tensors)
    assert_computes_the_same(tmp_path, peer, "decoded")


def test_transformers_reads_what_we_saved(peer: torch.nn.Module, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    peer.save_pretrained(theirs)
    Transformer.from_pretrained(theirs).save_pretrained(ours, format="fp32")
    config = json.loads((ours / "config.json").read_text())
    assert config["compress_ratios"] == list(RATIOS)
    again = transformers.DeepseekV4ForCausalLM.from_pretrained(ours, attn_implementation="eager")
    expected, found = peer.state_dict(), again.eval().state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_every_name_of_theirs_becomes_one_of_ours(
    peer: torch.nn.Module, make_model: Make, tmp_path: Path
) -> None:
    peer.save_pretrained(tmp_path)
    saved = {released_name(name) for name in load_file(tmp_path / "model.safetensors")}
    fields = {"compress_ratios": RATIOS, "num_hidden_layers": 4, "n_routed_experts": 4}
    ours = {name for name, _ in named_tensors(make_model(num_hash_layers=1, **fields))}
    assert saved == ours


def test_released_names_stay_as_they_are(make_model: Make) -> None:
    for name, _ in named_tensors(make_model()):
        assert released_name(name) == name
        assert released_name(f"model.{name}") == name


def test_two_spellings_of_one_tensor_are_refused(make_model: Make, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, format="fp32")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["embed.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight"):
        Transformer.from_pretrained(tmp_path)
