"""Every build of the compiled layers: prefill equals the formulas, however it is cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baleen.errors import NumericsError
from baleen.kernels import Backend, using
from baleen.kernels.isa import Isa, available, using_isa
from baleen.model import Transformer

Make = Callable[..., Transformer]
TOKENS = 700
"""More than the native form takes through the layers at once, and no multiple of anything."""
SHAPES = {
    "even": {"compress_ratios": (0, 4, 16, 4), "index_head_dim": 32},
    # widths and counts that fill no vector, no panel and no group of heads
    "odd": {
        "compress_ratios": (4, 0, 16, 4),
        "hidden_size": 72,
        "head_dim": 40,
        "qk_rope_head_dim": 8,
        "num_attention_heads": 3,
        "o_groups": 3,
        "o_lora_rank": 24,
        "q_lora_rank": 24,
        "index_n_heads": 5,
        "index_head_dim": 24,
        "moe_intermediate_size": 40,
        "hc_mult": 3,
    },
}


@pytest.fixture(params=available())
def build(request: pytest.FixtureRequest) -> Isa:
    isa: Isa = request.param
    return isa


def make(make_model: Make, shape: str, dtype: torch.dtype = torch.float32) -> Transformer:
    model = make_model(3, num_hidden_layers=4, **SHAPES[shape])
    keep = {name: weight for name, weight in model.named_parameters() if ".hc_" in name}
    kept = {name: weight.detach().clone() for name, weight in keep.items()}
    model = model.to(dtype)
    for name, weight in model.named_parameters():
        if name in kept:
            weight.data = kept[name]  # V4 keeps these in fp32
    return model


def ids_of(length: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_prefill_equals_the_plain_layers(make_model: Make, build: Isa, shape: str) -> None:
    model, ids = make(make_model, shape), ids_of(TOKENS)
    with using(Backend.TORCH):
        expected = model(ids)
    with using_isa(build):
        actual = model(ids)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "kv_dtype"),  # fp4 keys are powers of two wide
    [("even", "fp32"), ("even", "bf16"), ("even", "fp8"), ("odd", "fp32"), ("odd", "bf16")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_neither_pieces_nor_threads_change_a_bit(
    make_model: Make, build: Isa, shape: str, kv_dtype: str, dtype: torch.dtype
) -> None:
    model, ids = make(make_model, shape, dtype), ids_of(TOKENS)
    results = []
    with using_isa(build):
        for threads, cuts in ((1, [TOKENS]), (2, [TOKENS]), (3, [300, 17, 383]), (1, [40] * 17)):
            state, before = model.new_state(kv_dtype=kv_dtype), torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                parts = [model.streams(part, state) for part in ids[:, : sum(cuts)].split(cuts, 1)]
            finally:
                torch.set_num_threads(before)
            results.append(torch.cat(parts, dim=1)[:, :680])
    assert all(torch.equal(result, results[0]) for result in results)


@torch.no_grad()
def test_bf16_is_no_further_from_fp32_than_the_plain_layers_are(
    make_model: Make, build: Isa
) -> None:
    model, ids = make(make_model, "even", torch.bfloat16), ids_of(200)
    exact = copy.deepcopy(model).float()(ids)  # the same rounded weights
    scale = exact.abs().max()
    with using(Backend.TORCH):
        plain = (model(ids, model.new_state(kv_dtype="bf16")) - exact).abs().mean()
    with using_isa(build):
        whole = model(ids, model.new_state(kv_dtype="bf16"))
        state = model.new_state(kv_dtype="bf16")
        steps = torch.cat([model(token, state) for token in ids.split(1, dim=1)], dim=1)
    assert (whole - exact).abs().mean() <= plain
    assert (steps - exact).abs().mean() <= plain
    # sums in another order fall to the other side of a bf16 step now and then
    assert (whole - steps).abs().mean() <= 0.003 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_prefill_with_packed_weights_has_the_bits_of_decoded_ones(
    make_model: Make, build: Isa, dtype: torch.dtype, tmp_path: Path
) -> None:
    make(make_model, "even").save_pretrained(tmp_path, format="fp4")
    ids, logits = ids_of(100), []
    for weights in ("decoded", "packed"):
        model = Transformer.from_pretrained(tmp_path, dtype=dtype, weights=weights)
        with using_isa(build):
            logits.append(model.streams(ids))
    assert torch.equal(logits[0], logits[1])


@torch.no_grad()
def test_a_long_call_refuses_scores_that_are_no_numbers(make_model: Make, build: Isa) -> None:
    model = make(make_model, "even")
    model.layers[3].ffn.gate.weight.data[2, 5] = torch.nan
    with using_isa(build), pytest.raises(NumericsError, match="NaN"):
        model(ids_of(TOKENS))
