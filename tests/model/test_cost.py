"""The cost model: published and golden figures, real tensors, and operations really executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baleen.kernels import Backend, using
from baleen.model import ModelConfig, Transformer
from baleen.model.checkpoint import named_tensors
from baleen.model.cost import V32, Rule, counted, gqa8, v32_flops

MILLION = 1 << 20
Make = Callable[..., Transformer]


@pytest.mark.parametrize(
    ("name", "total", "active", "draft"),
    [("v4-pro", 1573.0, 48.85, 25.84), ("v4-flash", 284.33, 13.27, 6.61)],
)
def test_parameters_of_the_presets_are_the_published_ones(
    name: str, total: float, active: float, draft: float
) -> None:
    found = ModelConfig.preset(name).parameters()
    assert round(found.total / 1e9, 2 if total < 1000 else 1) == total
    assert round(found.active / 1e9, 2) == active
    assert round(found.draft / 1e9, 2) == draft


@pytest.mark.parametrize("name", ["v4-pro", "v4-flash", "v4-flash-base", "nano"])
def test_parameters_are_those_of_the_modules(name: str) -> None:
    config = ModelConfig.preset(name)
    with torch.device("meta"):
        model = Transformer(config)
    sizes = {True: 0, False: 0}
    for name, tensor in model.state_dict().items():
        if not name.endswith("tid2eid"):
            sizes[name.startswith("mtp.")] += tensor.numel()
    found = config.parameters()
    assert (found.total, found.draft) == (sizes[False], sizes[True])


@pytest.mark.parametrize(
    ("name", "at_8k", "at_128k", "at_1m", "bf16_gib"),
    [
        ("v4-pro", 45777408, 664040448, 5280404480, 9.62),
        ("v4-flash", 32003072, 463834112, 3688172544, 6.72),
    ],
)
def test_cache_entries_have_their_golden_sizes(
    name: str, at_8k: int, at_128k: int, at_1m: int, bf16_gib: float
) -> None:
    config = ModelConfig.preset(name)
    sizes = [config.cache_bytes(n).entries for n in (8192, 131072, MILLION)]
    assert sizes == [at_8k, at_128k, at_1m]
    assert round(config.cache_bytes(MILLION, "bf16").entries / 2**30, 2) == bf16_gib


def test_fixed_state_is_that_of_the_running_softmax() -> None:
    sizes = [ModelConfig.preset(name).cache_bytes(1).state for name in ("v4-pro", "v4-flash")]
    assert [round(size / 2**20, 2) for size in sizes] == [2.53, 1.76]


@pytest.mark.parametrize(
    ("name", "of_v32", "of_gqa8"), [("v4-pro", 10.48, 2.02), ("v4-flash", 7.32, 2.0)]
)
def test_cache_ratios_at_a_million_tokens(name: str, of_v32: float, of_gqa8: float) -> None:
    config = ModelConfig.preset(name)
    entries = config.cache_bytes(MILLION).entries
    assert round(100 * entries / V32.cache_bytes(MILLION), 2) == of_v32
    peer = gqa8(config.num_hidden_layers).cache_bytes(MILLION)
    assert round(100 * entries / peer, 2) == of_gqa8


@pytest.mark.parametrize(
    ("name", "ratios"),
    [("v4-pro", [26.2, 20.6, 26.5, 24.4]), ("v4-flash", [12.1, 8.2, 10.0, 9.4])],
)
def test_all_four_rules_give_their_golden_ratios(name: str, ratios: list[float]) -> None:
    ours, theirs = ModelConfig.preset(name).flops(MILLION), v32_flops(MILLION)
    found = [counted(ours, rule) / counted(theirs, rule, is_v4=False) for rule in Rule]
    assert [round(100 * ratio, 1) for ratio in found] == ratios


def test_the_parts_have_their_golden_sizes() -> None:
    flash = ModelConfig.preset("v4-flash").flops(MILLION)
    pro = ModelConfig.preset("v4-pro").flops(MILLION)
    other = v32_flops(MILLION)
    rows = {
        "linear": (24.53, 37.37, 9.56),
        "compressor": (0, 1.56, 0.61),
        "indexer": (1047.97, 128.85, 90.19),
        "attention": (34.80, 76.67, 23.61),
        "streams": (0, 0.20, 0.08),
        "head": (1.85, 1.85, 1.06),
        "total": (1157.7, 303.3, 140.4),
    }
    for part, expected in rows.items():
        found = [getattr(parts, part) / 1e9 for parts in (other, pro, flash)]
        assert found == pytest.approx(expected, abs=0.051 if part == "total" else 0.0051), part


@pytest.fixture
def executed(make_model: Make) -> Callable[..., tuple[ModelConfig, dict[str, int]]]:
    """Matrix operations of one decoded token after N - 1, by module."""

    def run(context: int, **fields: Any) -> tuple[ModelConfig, dict[str, int]]:
        model = make_model(**fields)
        ids = torch.arange(context).remainder(256).unsqueeze(0)
        state = model.new_state()
        with torch.no_grad(), using(Backend.TORCH):
            model(ids[:, :-1], state=state)
            counter = FlopCounterMode(display=False)
            with counter:
                model(ids[:, -1:], state=state)
        counts = {module: sum(ops.values()) for module, ops in counter.get_flop_counts().items()}
        return model.config, counts

    return run


KINDS = {"window only": 0, "compressed sparse": 4, "heavily compressed": 16}


@pytest.mark.parametrize("ratio", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("context", [96, 160])
def test_formulas_hold_to_the_operations_that_a_layer_executes(
    executed: Callable[..., tuple[ModelConfig, dict[str, int]]], ratio: int, context: int
) -> None:
    fields = {"num_hidden_layers": 1, "compress_ratios": (ratio,), "num_hash_layers": 0}
    config, counts = executed(context, **fields)
    parts = config.flops(context)
    layer = "Transformer.layers.0"
    # the formula counts each head's dot product, the weighing of the heads comes on top
    weighing = 2 * (context // 4) * config.index_n_heads if ratio == 4 else 0
    expected = parts.linear + parts.compressor + parts.indexer + parts.attention + weighing
    assert counts[f"{layer}.attn"] == expected
    assert counts[f"{layer}.ffn"] == parts.routed_experts + parts.shared_experts
    d, n = config.hidden_size, config.hc_mult
    mixing = 2 * (n + n * n) * d  # sums of streams, no matrix product
    sites = counts[f"{layer}.hc_attn"] + counts[f"{layer}.hc_ffn"]
    assert sites == parts.streams - 2 * mixing
    assert counts["Global"] >= expected + parts.head


@pytest.mark.parametrize(
    ("kind", "context"), [("fp32", 64), ("bf16", 192), ("fp8", 256), ("fp8", 512)]
)
def test_bytes_are_those_of_a_state_that_was_filled(
    make_model: Make, kind: str, context: int
) -> None:
    """Packed kinds at lengths that fill their pages."""
    model = make_model(index_head_dim=32)
    state = model.new_state(kv_dtype=kind)
    with torch.no_grad():
        model(torch.arange(context).remainder(256).unsqueeze(0), state=state)
    held = sum(
        layer.window.data.nbytes
        + sum(
            part.pending.data.nbytes + part.entries.used.nbytes
            for part in (layer.compressor, layer.indexer)
            if part is not None
        )
        for layer in state.layers
    )
    assert held == model.config.cache_bytes(context, kind).total


def test_every_tensor_of_a_preset_has_a_released_name() -> None:
    with torch.device("meta"):
        names = {name for name, _ in named_tensors(Transformer(ModelConfig.preset("v4-flash")))}
    assert {"layers.42.ffn.experts.255.w2.weight", "mtp.0.e_proj.weight", "hc_head_fn"} <= names
