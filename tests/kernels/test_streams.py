"""Hyper-connections: the compiled form equals the formula in float64, whatever the stream count."""

from __future__ import annotations

import pytest
import torch

from baleen.kernels import Backend, using
from baleen.kernels.streams import FEW_TOKENS, Mixing, Site, expand, mix


def random_site(n: int, width: int) -> Site:
    return Site(
        torch.randn((2 + n) * n, n * width, dtype=torch.float64) * 0.2,
        torch.randn((2 + n) * n, dtype=torch.float64),
        torch.rand(3, dtype=torch.float64) + 0.5,
        torch.randn(width, dtype=torch.float64),
        20,
        1e-6,
        1e-6,
    )


def naive(x: torch.Tensor, site: Site) -> Mixing:
    """One token, straight from the formula."""
    n = len(x)
    v = x.flatten()
    m = site.function @ v / (v.square().mean() + site.norm_eps).sqrt()
    pre = torch.sigmoid(m[:n] * site.scale[0] + site.base[:n]) + site.hc_eps
    post = 2 * torch.sigmoid(m[n : 2 * n] * site.scale[1] + site.base[n : 2 * n])
    comb = (m[2 * n :] * site.scale[2] + site.base[2 * n :]).view(n, n).softmax(1) + site.hc_eps
    comb = comb / (comb.sum(0) + site.hc_eps)
    for _ in range(site.iterations - 1):
        comb = comb / (comb.sum(1, keepdim=True) + site.hc_eps)
        comb = comb / (comb.sum(0) + site.hc_eps)
    u = (pre.unsqueeze(1) * x).sum(0)
    return Mixing(site.norm_d * u / (u.square().mean() + site.norm_eps).sqrt(), post, comb)


@pytest.mark.parametrize("backend", [Backend.TORCH, Backend.NATIVE])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("tokens", [1, FEW_TOKENS + 3])
def test_mixing_equals_the_formula(backend: Backend, n: int, tokens: int) -> None:
    torch.manual_seed(n)
    x, site = torch.randn(2, tokens, n, 16, dtype=torch.float64), random_site(n, 16)
    single = Site(*(weight.float() for weight in site[:4]), *site[4:])
    with using(backend):
        actual = mix(x.float(), single)
    for row in range(2):
        for token in range(tokens):
            for ours, wanted in zip(actual, naive(x[row, token], site), strict=True):
                assert (ours[row, token] - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("backend", [Backend.TORCH, Backend.NATIVE])
@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_the_sum_runs_over_the_first_index(backend: Backend, n: int) -> None:
    x, y = torch.randn(2, 3, n, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    post, comb = torch.rand(2, 3, n, dtype=torch.float64), torch.rand(2, 3, n, n).double()
    expected = torch.einsum("btk,btd->btkd", post, y) + torch.einsum("btjk,btjd->btkd", comb, x)
    mixing = Mixing(y.float(), post.float(), comb.float())
    with using(backend):
        assert (expand(y.float(), x.float(), mixing) - expected).abs().max() < 1e-5


def test_columns_sum_to_one() -> None:
    site = random_site(4, 16)
    single = Site(*(weight.float() for weight in site[:4]), *site[4:])
    comb = mix(torch.randn(1, 9, 4, 16), single).comb_BTNN
    assert (comb.sum(-2) - 1).abs().max() < 1e-5
    assert (comb > 0).all()
