"""Small models with random weights, in our and in transformers' form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from baleen.model import ModelConfig, Transformer, initialize

BASE = ModelConfig(
    vocab_size=256,
    hidden_size=64,
    num_hidden_layers=6,
    num_attention_heads=4,
    head_dim=32,
    qk_rope_head_dim=8,
    q_lora_rank=32,
    o_groups=2,
    o_lora_rank=16,
    sliding_window=16,
    compress_ratios=(0, 0, 4, 16, 4, 16),
    index_n_heads=32,  # with few, scores tie at exactly 0 and other implementations pick at random
    index_head_dim=16,
    index_topk=8,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    num_hash_layers=2,
    num_nextn_predict_layers=0,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_model() -> Callable[..., Transformer]:
    """A random model: `BASE` with the given fields replaced. Every parameter is random, norms,
    sinks and biases too, so that no term of a formula is tested at a value where it vanishes."""

    def make(seed: int = 0, **fields: object) -> Transformer:
        model = initialize(Transformer(dataclasses.replace(BASE, **fields)), seed)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(
                    noise * (0.3 if parameter.dim() < 2 or name.endswith("ape") else 0.1)
                )
        return model.eval()

    return make
