"""Against transformers' implementation with equal random weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from baleen.model import ModelConfig, Transformer
from baleen.model.checkpoint import named_tensors

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
"""Of the largest logit."""


def hf_config(config: ModelConfig) -> object:
    from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config

    data = config.to_hf()
    hca = next((r for r in config.compress_ratios if r > 4), 128)
    data["layer_types"] = [kind.value for kind in config.layer_kinds]
    data["compress_rates"] = {
        "compressed_sparse_attention": 4,
        "heavily_compressed_attention": hca,
    }
    del data["compress_ratios"]
    if data["rope_scaling"] is None:
        del data["rope_scaling"]
    return DeepseekV4Config(**data)


HF_NAMES = [
    ("embed.weight", "model.embed_tokens.weight"),
    ("head.weight", "lm_head.weight"),
    ("norm.weight", "model.norm.weight"),
    ("hc_head_", "model.hc_head.hc_"),
    ("layers.", "model.layers."),
    (".attn_norm.", ".input_layernorm."),
    (".ffn_norm.", ".post_attention_layernorm."),
    (".hc_attn_", ".attn_hc."),
    (".hc_ffn_", ".ffn_hc."),
    (".attn.attn_sink", ".self_attn.sinks"),
    (".attn.compressor.", ".self_attn.compressor."),
    (".attn.indexer.compressor.", ".self_attn.compressor.indexer."),
    (".attn.indexer.wq_b.", ".self_attn.compressor.indexer.q_b_proj."),
    (".attn.indexer.weights_proj.", ".self_attn.compressor.indexer.scorer.weights_proj."),
    (".attn.wq_a.", ".self_attn.q_a_proj."),
    (".attn.wq_b.", ".self_attn.q_b_proj."),
    (".attn.q_norm.", ".self_attn.q_a_norm."),
    (".attn.wkv.", ".self_attn.kv_proj."),
    (".attn.kv_norm.", ".self_attn.kv_norm."),
    (".attn.wo_a.", ".self_attn.o_a_proj."),
    (".attn.wo_b.", ".self_attn.o_b_proj."),
    (".ffn.gate.bias", ".mlp.gate.e_score_correction_bias"),
    (".ffn.", ".mlp."),
    (".w1.weight", ".gate_proj.weight"),
    (".w2.weight", ".down_proj.weight"),
    (".w3.weight", ".up_proj.weight"),
]
COMPRESSOR_NAMES = {
    "wkv.": "kv_proj.",
    "wgate.": "gate_proj.",
    "ape": "position_bias",
    "norm.": "kv_norm.",
}


def hf_state(model: Transformer) -> dict[str, torch.Tensor]:
    """Our tensors under transformers' names; its experts are stacked, gate and up in one."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in named_tensors(model):
        if ".experts." in name and "shared" not in name:
            continue
        new = name
        for old, replacement in HF_NAMES:
            if new.startswith(old) or (old.startswith(".") and old in new):
                new = new.replace(old, replacement, 1)
        if ".compressor." in new and "q_b_proj" not in new and "scorer" not in new:
            for old, replacement in COMPRESSOR_NAMES.items():
                head, dot, leaf = new.partition(".compressor.")
                inner = "indexer." if leaf.startswith("indexer.") else ""
                if leaf.removeprefix("indexer.").startswith(old):
                    new = (
                        head + dot + inner + leaf.removeprefix("indexer.").replace(old, replacement)
                    )
                    break
        state[new] = tensor
    for number, block in enumerate(model.layers):
        experts = block.ffn.experts
        prefix = f"model.layers.{number}.mlp.experts"
        state[f"{prefix}.gate_up_proj"] = torch.cat([experts.w1, experts.w3], dim=1)
        state[f"{prefix}.down_proj"] = experts.w2
    return state


def reference(model: Transformer) -> torch.nn.Module:
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4ForCausalLM

    config = hf_config(model.config)
    config._attn_implementation = "eager"  # type: ignore[attr-defined]
    peer = DeepseekV4ForCausalLM(config)
    missing, unexpected = peer.load_state_dict(hf_state(model), strict=False)
    assert not unexpected
    assert not [name for name in missing if "rotary" not in name]
    return peer.float().eval()


@pytest.mark.parametrize(
    ("ratios", "length", "fields"),
    [
        ((0, 0, 4, 16, 4, 16), 517, {}),
        ((16, 16, 4, 16, 4, 16), 203, {}),
        ((0, 0, 4, 128, 4, 128), 517, {"num_hash_layers": 3}),
        ((4, 4, 4, 0, 16, 4), 130, {"index_topk": 5}),
        ((0, 4, 16, 4, 4, 0), 77, {"rope_scaling": None, "o_groups": 4}),
    ],
)
def test_logits_equal_transformers(
    make_model: Callable[..., Transformer],
    ratios: tuple[int, ...],
    length: int,
    fields: dict[str, object],
) -> None:
    model = make_model(seed=length, compress_ratios=ratios, **fields)
    peer = reference(model)
    ids = torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        ours, theirs = model(ids), peer(input_ids=ids, use_cache=False).logits
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
