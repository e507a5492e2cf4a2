"""A cache never changes a result: chunks, batches, rollback and reload give the same logits."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen.errors import ConfigError, UsageError
from baleen.kernels import Backend, using
from baleen.model import Trace, Transformer
from baleen.model.transformer import PREFILL_CHUNK

TOLERANCE = 1e-5
Make = Callable[..., Transformer]

loosely = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


class Margins(Trace):
    """Remembers the first position whose choice of blocks hangs on rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.first: int | None = None

    def scored(
        self,
        layer: int,
        scores_BTM: torch.Tensor,
        limits_BT: torch.Tensor,
        picks_BTK: torch.Tensor | None,
    ) -> None:
        super().scored(layer, scores_BTM, limits_BT, picks_BTK)
        kept = 0 if picks_BTK is None else picks_BTK.shape[-1]
        for t, limit in enumerate(limits_BT[0].tolist()):
            ranked = scores_BTM[0, t, :limit].sort(descending=True).values
            if (
                kept
                and limit > kept
                and ranked[kept - 1] - ranked[kept] < 1e-5 * ranked.abs().max()
            ):
                self.first = t if self.first is None else min(self.first, t)


def first_near_tie(model: Transformer, ids: torch.Tensor) -> int | None:
    """From where on two ways of taking the same sums may choose other blocks; None: nowhere."""
    margins = Margins()
    model(ids.unsqueeze(0), trace=margins)
    return margins.first


def random_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


@loosely
@given(
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=10),
    ratios=st.lists(st.sampled_from([0, 4, 16]), min_size=6, max_size=6),
    index_heads=st.sampled_from([1, 4]),  # few heads: many scores tie at exactly 0
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_any_chunking_gives_the_same_logits_and_the_same_choice(
    make_model: Make, cuts: list[int], ratios: list[int], index_heads: int, seed: int
) -> None:
    model = make_model(seed, compress_ratios=tuple(ratios), index_n_heads=index_heads)
    ids = random_ids(2, sum(cuts), seed)
    trace = Trace()
    whole = model(ids, trace=trace)
    state, parts, start = model.new_state(2), [], 0
    for chunk in ids.split(cuts, dim=1):
        piece = Trace()
        parts.append(model(chunk, state, trace=piece))
        for layer, chosen in piece.chosen.items():
            expected = trace.chosen[layer][:, start : start + chunk.shape[1], : chosen.shape[2]]
            assert torch.equal(chosen.expand_as(expected), expected)
        start += chunk.shape[1]
    assert close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("stepping", [Backend.TORCH, Backend.NATIVE])
@pytest.mark.parametrize("streams", [2, 4])
@torch.no_grad()
def test_token_by_token_equals_one_call(make_model: Make, stepping: Backend, streams: int) -> None:
    model = make_model(3, hc_mult=streams)
    ids = random_ids(1, 150)
    with using(Backend.TORCH):
        whole = model(ids)
    state = model.new_state()
    with using(stepping):
        steps = [model(ids[:, t : t + 1], state) for t in range(150)]
    assert close(torch.cat(steps, dim=1), whole)


@pytest.mark.parametrize("weights", ["decoded", "packed"])
@pytest.mark.parametrize("kv_dtype", ["fp32", "fp8"])
@pytest.mark.parametrize(("format", "width"), [("fp8", 136), ("fp4", 160)])
@torch.no_grad()
def test_tokens_that_come_together_have_the_bits_of_single_steps(
    make_model: Make, weights: str, kv_dtype: str, format: str, width: int, tmp_path: Path
) -> None:
    # widths that are no whole tiles, and tiles of wo_a that reach across its groups
    shape = {"index_head_dim": 32, "head_dim": 64, "hidden_size": width, "o_lora_rank": 48}
    make_model(5, **shape).save_pretrained(tmp_path, format=format)
    model = Transformer.from_pretrained(tmp_path, weights=weights)
    ids = random_ids(1, 150)
    single, joint = model.new_state(kv_dtype=kv_dtype), model.new_state(kv_dtype=kv_dtype)
    steps = [model.streams(token, single) for token in ids.split(1, dim=1)]
    runs = [model.streams(run, joint) for run in ids.split([2, 3, 5, 16, 1, 4, 9, 10] * 3, 1)]
    assert torch.equal(torch.cat(runs, dim=1), torch.cat(steps, dim=1))
    with using(Backend.TORCH):
        expected = model(ids, model.new_state(kv_dtype=kv_dtype))
    actual = model.logits(model.readout(torch.cat(steps, dim=1)))
    slack = 1e-5 if kv_dtype == "fp32" else 0.02
    error = (actual - expected).abs()
    assert (error.max() if kv_dtype == "fp32" else error.mean()) <= slack * expected.abs().max()


@torch.no_grad()
def test_a_step_after_weights_changed_uses_the_new_ones(make_model: Make) -> None:
    model, other = make_model(3), make_model(4)
    ids = random_ids(1, 9)
    for token in ids.split(1, dim=1):
        model(token, model.new_state())
    model.load_state_dict(other.state_dict())
    assert close(model(ids[:, :1]), other(ids[:, :1]))
    model.layers[1].attn.wq_a.weight = torch.nn.Parameter(model.layers[1].attn.wq_a.weight * 2)
    with using(Backend.TORCH):
        expected = model(ids[:, :1])
    assert close(model(ids[:, :1]), expected)


@torch.no_grad()
def test_a_step_after_a_small_weight_changed_in_place_uses_its_new_values(make_model: Make) -> None:
    model, ids = make_model(3).to(torch.bfloat16), random_ids(1, 1)
    before = model(ids)  # small weights were copied to fp32
    model.layers[1].attn.q_norm.weight.mul_(1.5)
    model.layers[0].ffn_norm.weight.mul_(0.5)
    after = model(ids)
    assert not torch.equal(after, before)
    assert torch.equal(after, copy.deepcopy(model)(ids))


@torch.no_grad()
def test_a_rolled_back_step_leaves_no_trace(make_model: Make) -> None:
    model = make_model(7)
    ids = random_ids(1, 200)
    state = model.new_state()
    model(ids[:, :40], state)
    for start in range(40, 180, 7):
        mark = state.mark()
        for token in random_ids(1, 5, start).split(1, dim=1):
            model(token, state)
        state.rollback(mark)
        last = [model(token, state) for token in ids[:, start : start + 7].split(1, dim=1)]
    assert close(torch.cat(last, dim=1), model(ids[:, :180])[:, -7:])


@torch.no_grad()
def test_a_call_longer_than_the_internal_chunk_equals_smaller_ones(make_model: Make) -> None:
    model = make_model(4, num_hidden_layers=3, compress_ratios=(4, 16, 4))
    ids = random_ids(1, PREFILL_CHUNK + 77)
    state = model.new_state()
    parts = [model(chunk, state) for chunk in ids.split(200, dim=1)]
    assert close(model(ids), torch.cat(parts, dim=1))


@pytest.mark.parametrize("backend", [Backend.TORCH, Backend.NATIVE])
@pytest.mark.parametrize("length", [9, PREFILL_CHUNK + 77])
@torch.no_grad()
def test_kept_logits_are_the_last_of_all(make_model: Make, length: int, backend: Backend) -> None:
    model, ids = make_model(4, num_hidden_layers=2, compress_ratios=(4, 16)), random_ids(1, length)
    with using(backend):
        whole = model(ids)
        for keep in (0, 1, 9, 77, 78, length):
            kept = model(ids, logits_to_keep=min(keep, length))
            assert (
                close(kept, whole[:, length - min(keep, length) :]) if keep else kept.numel() == 0
            )


@loosely
@given(
    lengths=st.lists(st.integers(1, 70), min_size=2, max_size=4),
    more=st.lists(st.integers(0, 30), min_size=4, max_size=4),
)
@torch.no_grad()
def test_ragged_rows_equal_single_runs(
    make_model: Make, lengths: list[int], more: list[int]
) -> None:
    model = make_model(5)
    rows = [random_ids(1, n + m, n)[0] for n, m in zip(lengths, more, strict=False)]
    state = model.new_state(len(rows))
    results: list[list[torch.Tensor]] = [[] for _ in rows]
    starts = [0] * len(rows)
    for counts in (lengths, more[: len(rows)]):
        padded = torch.zeros(len(rows), max(*counts, 1), dtype=torch.int64)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            padded[row, :count] = rows[row][start : start + count]
        logits = model(padded, state, counts_B=torch.tensor(counts))
        for row, count in enumerate(counts):
            results[row].append(logits[row, :count])
            starts[row] += count
    for row, parts in zip(rows, results, strict=True):
        clear = first_near_tie(model, row)
        assert close(torch.cat(parts)[:clear], model(row.unsqueeze(0))[0, :clear])


@loosely
@given(
    lengths=st.lists(st.integers(1, 70), min_size=2, max_size=4),
    before=st.lists(st.integers(0, 140), min_size=4, max_size=4),
    steps=st.integers(0, 3),
)
@torch.no_grad()
def test_rows_padded_on_the_left_equal_single_runs(
    make_model: Make, lengths: list[int], before: list[int], steps: int
) -> None:
    model = make_model(5)
    rows = [random_ids(1, count + steps, count)[0] for count in lengths]
    width = max(b + n for b, n in zip(before, lengths, strict=False))
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    padded = random_ids(len(rows), width, 99)  # what a pad holds must not matter
    for row, (start, count) in enumerate(zip(before, lengths, strict=False)):
        mask[row, start : start + count] = 1
        padded[row, start : start + count] = rows[row][:count]
    state = model.new_state(len(rows))
    logits = model(padded, state, attention_mask=mask)
    results = [[logits[r, mask[r].bool()]] for r in range(len(rows))]
    for step in range(steps):
        token = torch.stack([row[n + step] for row, n in zip(rows, lengths, strict=True)])
        after = model(token.unsqueeze(1), state)
        for row in range(len(rows)):
            results[row].append(after[row])
    for row, parts in zip(rows, results, strict=True):
        clear = first_near_tie(model, row)
        assert close(torch.cat(parts)[:clear], model(row.unsqueeze(0))[0, :clear])


@torch.no_grad()
def test_behind_left_pads_the_last_column_is_every_rows_last_token(make_model: Make) -> None:
    model = make_model(5)
    ids, mask = random_ids(2, 40), torch.ones(2, 40, dtype=torch.bool)
    mask[1, :13] = False
    last = model(ids, logits_to_keep=1, attention_mask=mask)
    assert last.shape == (2, 1, 256)
    assert close(last[1], model(ids[1:, 13:])[0, -1:])


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(2, 8), "is [2, 8], the ids are [2, 9]"),
        (torch.full((2, 9), 0.5), "other than 0 and 1"),
        (torch.tensor([[1] * 9, [1] * 4 + [0] + [1] * 4]), "hole in row 1"),
    ],
)
def test_a_mask_that_describes_no_padding_is_refused(
    make_model: Make, mask: torch.Tensor, says: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        make_model(5)(random_ids(2, 9), attention_mask=mask)


@torch.no_grad()
def test_later_tokens_leave_earlier_logits_untouched(make_model: Make) -> None:
    model = make_model(6)
    ids = random_ids(1, 90)
    changed = ids.clone()
    changed[:, 60:] = (changed[:, 60:] + 1) % 256
    # not bit-equal: tokens are grouped by expert, and a product's rounding depends on the group's
    # size
    before, after = model(ids)[:, :60], model(changed)[:, :60]
    assert (before - after).abs().max() <= 1e-6 * before.abs().max()


@torch.no_grad()
def test_rollback_returns_bit_for_bit(make_model: Make) -> None:
    model = make_model(7)
    ids = random_ids(1, 120)
    state = model.new_state()
    model(ids[:, :50], state)
    mark = state.mark()
    first = model(ids[:, 50:90], state)
    model(random_ids(1, 30, 9), state)
    state.rollback(mark)
    assert torch.equal(model(ids[:, 50:90], state), first)


@torch.no_grad()
def test_saved_state_goes_on_bit_for_bit(make_model: Make, tmp_path: Path) -> None:
    model = make_model(8)
    ids = random_ids(2, 100)
    state = model.new_state(2)
    model(ids[:, :61], state)
    state.save(tmp_path / "state", {"note": "x"})
    loaded = model.new_state(2)
    assert loaded.load(tmp_path / "state")["note"] == "x"
    assert torch.equal(model(ids[:, 61:], loaded), model(ids[:, 61:], state))


def test_state_of_another_shape_is_refused(make_model: Make, tmp_path: Path) -> None:
    make_model(0, head_dim=16).new_state().save(tmp_path / "state")
    with pytest.raises(ConfigError, match="another shape"):
        make_model(0).new_state().load(tmp_path / "state")


@torch.no_grad()
def test_forked_rows_go_on_alone(make_model: Make) -> None:
    model = make_model(9)
    ids = random_ids(3, 80)
    ids[:, :45] = ids[:1, :45]
    state = model.new_state()
    model(ids[:1, :45], state)
    forked = state.select(torch.tensor([0, 0, 0]))
    assert close(model(ids[:, 45:], forked), model(ids)[:, 45:])


@torch.no_grad()
def test_bf16_cache_halves_entries_and_stays_near_fp32(make_model: Make) -> None:
    model = make_model(10)
    ids = random_ids(1, 70)
    exact, compact = model.new_state(), model.new_state(kv_dtype="bf16")
    # no equality here: a rounding of fp32 noise can fall to either side of a bf16 step, and now and
    # then a token's experts hang on it
    expected = model(ids, exact)
    difference_T = (expected - model(ids, compact))[0].abs().amax(-1)
    assert difference_T.max() > 0
    assert difference_T.quantile(0.95) <= 0.05 * expected.abs().max()
    for full, half in zip(exact.layers, compact.layers, strict=True):
        assert 2 * half.window.data.nbytes == full.window.data.nbytes


@pytest.mark.parametrize("stepping", [Backend.TORCH, Backend.NATIVE])
@torch.no_grad()
def test_a_packed_cache_stays_near_fp32_and_continues_alike(
    make_model: Make, stepping: Backend, tmp_path: Path
) -> None:
    model = make_model(10, index_head_dim=32, head_dim=64, sliding_window=32)
    ids = random_ids(1, 150)
    exact = model(ids, model.new_state())
    compact = model(ids, model.new_state(kv_dtype="fp8"))
    scale = exact.abs().max()
    # codes of 3 bits move logits by percents, and now and then another block is chosen
    assert 0 < (exact - compact).abs().mean() <= 0.05 * scale
    state = model.new_state(kv_dtype="fp8")
    model(ids[:, :97], state)
    mark = state.mark()
    with using(stepping):
        steps = torch.cat([model(token, state) for token in ids[:, 97:].split(1, dim=1)], dim=1)
        assert (steps - compact[:, 97:]).abs().mean() <= 0.02 * scale
        state.rollback(mark)
        state.save(tmp_path / "state")
        loaded = model.new_state(kv_dtype="fp8")
        loaded.load(tmp_path / "state")
        forked = state.select(torch.tensor([0, 0]))
        again = torch.cat([model(token, loaded) for token in ids[:, 97:].split(1, dim=1)], dim=1)
    assert torch.equal(again, steps)
    both = model(ids[:, 97:].expand(2, -1), forked)
    assert (both - compact[:, 97:]).abs().mean() <= 0.02 * scale


@torch.no_grad()
def test_ragged_rows_of_a_packed_cache_stay_near_single_runs(make_model: Make) -> None:
    model = make_model(10, index_head_dim=32, head_dim=64)
    ids, counts = random_ids(2, 60), torch.tensor([60, 33])
    state = model.new_state(2, kv_dtype="fp8")
    model(ids, state, counts_B=counts)
    joint = model(ids, state)
    for row, count in enumerate(counts.tolist()):
        alone = model.new_state(kv_dtype="fp8")
        model(ids[row : row + 1, :count], alone)
        single = model(ids[row : row + 1], alone)
        assert (joint[row] - single[0]).abs().mean() <= 0.02 * single.abs().max()


def test_unusable_calls_are_refused(make_model: Make) -> None:
    model = make_model(0)
    with pytest.raises(UsageError, match="256 is outside the vocabulary"):
        model(torch.tensor([[256]]))
    with pytest.raises(UsageError, match="max_len of 8"):
        model(random_ids(1, 9), model.new_state(max_len=8))
    with pytest.raises(UsageError, match="2 rows"):
        model(random_ids(1, 9), model.new_state(2))
    with pytest.raises(ConfigError, match="fp7"):
        model.new_state(kv_dtype="fp7")


@torch.no_grad()
def test_a_copied_or_pickled_model_steps_on_its_own_weights(make_model: Make) -> None:
    model = make_model(5)
    ids = random_ids(1, 1)
    before = model(ids)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for parameter in model.parameters():
        parameter.zero_()
    del model
    assert all(torch.equal(twin(ids), before) for twin in twins)
