"""Attention by gather equals the formula written as a loop in float64, and so do its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baleen.kernels import Backend, Blocks, Entries, Kind, Layout, attend, using
from baleen.kernels.attend import QUERY_TILE

WINDOW, HEADS, WIDTH = 8, 5, 24
BACKENDS = list(Backend)


def naive(
    q: Tensor, sinks: Tensor, past: list[Tensor], kv: Tensor, blocks: Tensor, seen: list[list[int]]
) -> Tensor:
    """One row, one query at a time, straight from the formula; `past` are its earlier latents."""
    latents = [*past, *kv]
    out = torch.zeros_like(q)
    for t in range(len(q)):
        position = len(past) + t
        keys = latents[max(0, position - WINDOW + 1) : position + 1]
        keys = torch.stack([*keys, *(blocks[i] for i in seen[t])])
        for head in range(q.shape[1]):
            logits = keys @ q[t, head] / math.sqrt(q.shape[2])
            weights = torch.cat([logits, sinks[head : head + 1]]).softmax(0)[:-1]
            out[t, head] = weights @ keys
    return out


def ring_of(past: list[Tensor]) -> Tensor:
    ring = torch.full((WINDOW, WIDTH), 7.0, dtype=torch.float64)  # rubbish where nothing was
    for position, latent in enumerate(past):
        ring[position % WINDOW] = latent
    return ring


class Case:
    """Random inputs of one call; row b holds `starts[b]` earlier tokens."""

    def __init__(self, starts: list[int], tokens: int, num_blocks: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        batch = len(starts)
        self.past = [list(draw(start, WIDTH)) for start in starts]
        self.q, self.kv = draw(batch, tokens, HEADS, WIDTH), draw(batch, tokens, WIDTH)
        self.sinks, self.blocks = draw(HEADS), draw(batch, num_blocks, WIDTH)
        self.starts = torch.tensor(starts)
        self.limits = torch.randint(0, num_blocks + 1, (batch, tokens), generator=generator)
        ranks = torch.rand(batch, tokens, num_blocks, generator=generator)
        hidden = torch.arange(num_blocks) >= self.limits.unsqueeze(-1)
        self.order = ranks.masked_fill(hidden, 2.0).argsort(-1)

    def picks(self, count: int) -> Tensor:
        """The first `count` blocks of a random order of the visible ones, ascending, then -1."""
        num_blocks = self.blocks.shape[1]
        kept = self.order[..., :count].clone()
        rank = torch.arange(kept.shape[-1])
        kept[rank >= self.limits.unsqueeze(-1)] = num_blocks
        kept = kept.sort(-1).values
        return torch.where(kept < num_blocks, kept, -1).int()

    def expected(self, picks: Tensor | None) -> Tensor:
        rows = []
        for row in range(len(self.starts)):
            if picks is None:
                seen = [list(range(n)) for n in self.limits[row].tolist()]
            else:
                seen = [[i for i in chosen if i >= 0] for chosen in picks[row].tolist()]
            rows.append(
                naive(self.q[row], self.sinks, self.past[row], self.kv[row], self.blocks[row], seen)
            )
        return torch.stack(rows)

    def actual(self, picks: Tensor | None, backend: Backend, dtype: torch.dtype) -> Tensor:
        rings = torch.stack([ring_of(past) for past in self.past]).to(dtype)
        blocks = Blocks(Entries.plain(self.blocks.to(dtype)), self.limits, picks)
        with using(backend):
            return attend(
                self.q.float(),
                self.sinks.float(),
                Entries.plain(rings),
                self.kv.float(),
                self.starts,
                blocks,
            ).out_BTHc

    def rounded(self, dtype: torch.dtype) -> Case:
        """Everything that a cache of this type rounds, rounded."""
        self.past = [[latent.to(dtype).double() for latent in past] for past in self.past]
        self.kv, self.blocks = self.kv.to(dtype).double(), self.blocks.to(dtype).double()
        return self


@settings(max_examples=60, deadline=None)
@given(
    starts=st.lists(st.integers(0, 3 * WINDOW), min_size=1, max_size=3),
    tokens=st.sampled_from([1, 2, 7, 33]),
    num_blocks=st.integers(0, 20),
    count=st.sampled_from([None, 1, 5, 64]),
    backend=st.sampled_from(BACKENDS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equals_the_formula(
    starts: list[int],
    tokens: int,
    num_blocks: int,
    count: int | None,
    backend: Backend,
    dtype: torch.dtype,
) -> None:
    case = Case(starts, tokens, num_blocks).rounded(dtype)
    picks = None if count is None else case.picks(count)
    assert (case.actual(picks, backend, dtype) - case.expected(picks)).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [None, 6])
def test_queries_beyond_one_tile_equal_the_formula(count: int | None, backend: Backend) -> None:
    case = Case([3], 2 * QUERY_TILE + 5, 12)
    picks = None if count is None else case.picks(count)
    actual = case.actual(picks, backend, torch.float32)
    assert (actual - case.expected(picks)).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_is_no_number_gives_none(backend: Backend) -> None:
    case = Case([9], 2, 4)
    case.q[0, 1, 0, 3] = torch.nan
    out = case.actual(None, backend, torch.float32)
    assert out[0, 1, 0].isnan().all()
    assert not out[0, 0].isnan().any()


def packed(values_BMc: Tensor, layout: Layout) -> Entries:
    batch, count = values_BMc.shape[:2]
    data = layout.empty(batch, count).zero_()
    rows, places = torch.arange(batch).repeat_interleave(count), torch.arange(count).repeat(batch)
    layout.put(data, rows, places, values_BMc.flatten(0, 1).float())
    return Entries(data, count, layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("count", [None, 5])
def test_packed_entries_are_attended_as_they_decode(
    backend: Backend, tokens: int, count: int | None
) -> None:
    case = Case([11, 3], tokens, 21)
    ring = packed(
        torch.stack([ring_of(past) for past in case.past]), Layout(Kind.FP8, WIDTH, 8, WINDOW)
    )
    blocks = packed(case.blocks, Layout(Kind.FP8, WIDTH, 8, 8))
    case.blocks = blocks.values().double()
    for row, past in enumerate(case.past):
        stored = ring.values()[row].double()
        case.past[row] = [
            stored[p % WINDOW] if p >= len(past) - WINDOW else latent
            for p, latent in enumerate(past)
        ]
    picks = None if count is None else case.picks(count)
    with using(backend):
        out = attend(
            case.q.float(),
            case.sinks.float(),
            ring,
            case.kv.float(),
            case.starts,
            Blocks(blocks, case.limits, picks),
        ).out_BTHc
    assert (out - case.expected(picks)).abs().max() < 1e-5


@pytest.mark.parametrize("picked", [True, False])
def test_queries_in_bf16_attend_packed_entries_of_full_width(picked: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(1, 1, 64, 512, generator=generator).to(torch.bfloat16)
    ring = packed(torch.randn(1, 128, 512, generator=generator), Layout(Kind.FP8, 512, 64, 128))
    blocks = packed(torch.randn(1, 100, 512, generator=generator), Layout(Kind.FP8, 512, 64, 64))
    picks = torch.arange(0, 90, 3).view(1, 1, -1).int() if picked else None
    outs = []
    for backend in (Backend.TORCH, Backend.TRITON):
        with using(backend):
            far = Blocks(blocks, torch.tensor([[90]]), picks)
            kv = torch.ones(1, 1, 512)
            sinks = torch.linspace(-1, 1, 64)
            outs.append(attend(q, sinks, ring, kv, torch.tensor([300]), far).out_BTHc)
    # the weights are rounded to bf16 on the way
    assert (outs[0] - outs[1]).abs().max() < 2**-7 * outs[0].abs().max()


@pytest.mark.parametrize("count", [None, 2])
def test_gradients_equal_finite_differences(count: int | None) -> None:
    case = Case([5, 5], 4, 5)
    picks = None if count is None else case.picks(count)
    rings = torch.stack([ring_of(past) for past in case.past])

    def run(q: Tensor, sinks: Tensor, kv: Tensor, values: Tensor) -> Tensor:
        blocks = Blocks(Entries.plain(values), case.limits, picks)
        return attend(q, sinks, Entries.plain(rings), kv, case.starts, blocks).out_BTHc

    inputs = [x.clone().requires_grad_() for x in (case.q, case.sinks, case.kv, case.blocks)]
    assert torch.autograd.gradcheck(run, inputs)
