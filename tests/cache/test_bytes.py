"""What a state allocates is what the cost model says, for every kind and length."""

from __future__ import annotations

import dataclasses

import pytest

from baleen.cache import LayerShape, State
from baleen.model import LayerKind, ModelConfig

NARROW = dataclasses.replace(
    ModelConfig.preset("v4-flash"),
    num_attention_heads=8,
    head_dim=128,
    qk_rope_head_dim=32,
    index_head_dim=32,
    num_hidden_layers=12,
)


def state_of(config: ModelConfig, kv: str, max_len: int) -> State:
    """As `Transformer.new_state` makes it, without the weights."""
    shapes = [
        LayerShape(
            config.head_dim,
            config.compress_ratios[layer],
            kind is LayerKind.CSA,
            config.index_head_dim if kind is LayerKind.CSA else 0,
            config.qk_rope_head_dim,
        )
        for layer, kind in enumerate(config.layer_kinds)
    ]
    return State(shapes, config.sliding_window, 1, kv, max_len)


@pytest.mark.parametrize("tokens", [1 << 10, 1 << 17, 1 << 20])
@pytest.mark.parametrize("kv", ["fp8", "bf16", "fp32"])
@pytest.mark.parametrize("name", ["v4-flash", "v4-pro", "narrow"])
def test_allocated_bytes_equal_the_cost_model(name: str, kv: str, tokens: int) -> None:
    config = NARROW if name == "narrow" else ModelConfig.preset(name)
    allocated = state_of(config, kv, tokens).nbytes
    planned = config.cache_bytes(tokens, kv).total
    assert abs(allocated - planned) <= 0.01 * planned
