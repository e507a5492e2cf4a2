"""The choice of blocks is a total order: score descending, then lowest block, of visible ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.kernels import Backend, Entries, Kind, Layout, select, select_blocks, using
from baleen.kernels.packing import hadamard
from baleen.kernels.select import best_blocks

BACKENDS = list(Backend)


def naive(scores: torch.Tensor, limit: int, topk: int) -> list[int]:
    ranked = sorted(range(limit), key=lambda i: (-float(scores[i]), i))
    return sorted(ranked[:topk])


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]), min_size=1, max_size=40),
    limit=st.integers(0, 40),
    topk=st.integers(1, 45),
)
def test_ties_go_to_the_lowest_block(values: list[float], limit: int, topk: int) -> None:
    scores = torch.tensor(values)
    limit = min(limit, len(values))
    picks = best_blocks(scores.view(1, 1, -1), torch.tensor([[limit]]), topk)[0, 0].tolist()
    assert [i for i in picks if i >= 0] == naive(scores, limit, topk)
    assert sorted(picks, key=lambda i: (i < 0, i)) == picks


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 40),
    num_blocks=st.integers(1, 90),
    seed=st.integers(0, 99),
    backend=st.sampled_from(BACKENDS),
)
def test_tiles_rows_and_hidden_blocks_do_not_change_a_choice(
    tokens: int, num_blocks: int, seed: int, backend: Backend
) -> None:
    if backend is Backend.TRITON:
        tokens = min(tokens, 9)  # the interpreter is slow; nine queries are two runs of them
    with using(backend):
        check_single_choices(tokens, num_blocks, seed)


def check_single_choices(tokens: int, num_blocks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # one head of small integers: most scores tie, many at exactly 0
    q = torch.randint(-1, 2, (2, tokens, 1, 16), generator=generator).float()
    keys = torch.randint(-1, 2, (2, num_blocks, 16), generator=generator).float()
    weights = torch.randint(-1, 2, (2, tokens, 1), generator=generator).float()
    limits = torch.randint(0, num_blocks + 1, (2, tokens), generator=generator)
    whole = select_blocks(q, weights, Entries.plain(keys), limits, 7)
    for row in range(2):
        for token in range(tokens):
            limit = int(limits[row, token])
            alone = select_blocks(
                q[row : row + 1, token : token + 1],
                weights[row : row + 1, token : token + 1],
                Entries.plain(keys[row : row + 1, : max(1, limit)]),
                limits[row : row + 1, token : token + 1],
                7,
            )
            kept = [i for i in whole[row, token].tolist() if i >= 0]
            assert [i for i in alone[0, 0].tolist() if i >= 0] == kept


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (1, 30), (4, 1), (7, 11)])
@pytest.mark.parametrize("backend", [Backend.NATIVE, Backend.TRITON])
def test_a_fast_choice_equals_the_formula_over_many_blocks(
    kind: torch.dtype, heads: int, tokens: int, backend: Backend
) -> None:
    generator = torch.Generator().manual_seed(heads)
    # small integers, so that both forms sum exactly; ties are everywhere
    q = torch.randint(-2, 3, (1, tokens, heads, 16), generator=generator).float()
    keys = torch.randint(-2, 3, (1, 3000, 16), generator=generator).to(kind)
    weights = torch.randint(-2, 3, (1, tokens, heads), generator=generator).float()
    limits = torch.randint(1, 3001, (1, tokens), generator=generator)
    with using(Backend.TORCH):
        expected = select_blocks(q, weights, Entries.plain(keys), limits, 40)
    with using(backend):
        assert torch.equal(select_blocks(q, weights, Entries.plain(keys), limits, 40), expected)


@pytest.mark.parametrize("tokens", [1, 30])
def test_fp4_keys_are_scored_as_they_decode(tokens: int) -> None:
    q, keys = torch.randn(1, tokens, 4, 128), torch.randn(700, 128)
    weights, limits = torch.randn(1, tokens, 4), torch.full((1, tokens), 700)
    layout = Layout(Kind.FP4, 128, 0, 64)
    data = layout.empty(1, 700)
    layout.put(data, torch.zeros(700, dtype=torch.int64), torch.arange(700), keys)
    stored = Entries(data, 700, layout)
    plain = Entries.plain(hadamard(stored.values()))  # rotated back
    for backend in BACKENDS:
        with using(backend):
            packed = select_blocks(q, weights, stored, limits, 50)
            wanted = select_blocks(q, weights, plain, limits, 50)
        # rounding may swap blocks of nearly equal scores, no more
        shared = (packed.unsqueeze(-1) == wanted.unsqueeze(-2)).any(-1).float().mean()
        assert shared > 0.98


def test_many_queries_are_scored_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    q, keys = torch.randn(1, 50, 2, 16), torch.randn(1, 30, 16)
    weights, limits = torch.randn(1, 50, 2), torch.full((1, 50), 30)
    whole = select_blocks(q, weights, Entries.plain(keys), limits, 5)
    monkeypatch.setattr(select, "TILE_ELEMENTS", 7 * 2 * 30)
    with using(Backend.TORCH):
        assert torch.equal(select_blocks(q, weights, Entries.plain(keys), limits, 5), whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("blocks", [9, 600])
def test_a_score_that_is_no_number_is_refused(blocks: int, backend: Backend) -> None:
    q, keys = torch.full((1, 1, 1, 16), torch.nan), torch.ones(1, blocks, 16)
    with using(backend), pytest.raises(FloatingPointError, match="NaN"):
        select_blocks(q, torch.ones(1, 1, 1), Entries.plain(keys), torch.tensor([[blocks]]), 2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), topk=st.integers(1, 70), spread=st.sampled_from([1, 3, 1000]))
def test_the_best_of_a_long_stream_are_those_of_a_sort(seed: int, topk: int, spread: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # one number wide, so that scores are the keys; few different ones tie by the dozen
    keys = torch.zeros(1, 1100, 8)
    keys[..., 0] = torch.randint(0, spread, (1, 1100), generator=generator).float()
    weights = torch.tensor([-1.0, 1.0])[torch.randint(0, 2, (1,), generator=generator)]
    q, limit = torch.ones(1, 1, 1, 8), int(torch.randint(1, 1101, (1,), generator=generator))
    picks = select_blocks(
        q, weights.view(1, 1, 1), Entries.plain(keys), torch.tensor([[limit]]), topk
    )
    expected = naive(weights * keys[0, :, 0].relu(), limit, topk)
    assert [i for i in picks[0, 0].tolist() if i >= 0] == expected
