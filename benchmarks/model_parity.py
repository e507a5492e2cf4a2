"""Our logits against transformers' over random configurations, and against ourselves in pieces.

    python benchmarks/model_parity.py [--configs 30] [--longest 2000]

Weights are random, fp32. Differences are given relative to the largest logit. Where the indexer's
last chosen and first left-out block score nearly alike (1e-5, relative), rounding decides which is
taken, so from the first such query on logits are compared with the oracle's choice forced on us;
such queries are counted. Prints and writes `benchmarks/results/model_parity.csv`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from results import write_results
from torch import Tensor
from torch.nn import functional

from baleen.kernels import Entries
from baleen.model import ModelConfig, Transformer, initialize
from baleen.model.attention import Attention
from baleen.model.transformer import PREFILL_CHUNK

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS / "model"), str(TESTS)]
from test_parity import reference  # noqa: E402

from conftest import BASE  # noqa: E402

NEAR = 1e-5
BAR = 2e-5


def draw_config(rng: random.Random) -> ModelConfig:
    """Any mixture of layer kinds, widths and counts that transformers can hold as well."""
    layers, hca = rng.randint(3, 8), rng.choice([16, 64, 128])
    kinds = [0, 4, 4, hca]
    heads = rng.choice([2, 4, 8])
    return dataclasses.replace(
        BASE,
        num_hidden_layers=layers,
        compress_ratios=(4, hca, *(rng.choice(kinds) for _ in range(layers - 2))),
        num_attention_heads=heads,
        o_groups=rng.choice([1, 2]),
        head_dim=rng.choice([32, 64]),
        sliding_window=rng.choice([8, 16, 64, 128]),
        index_n_heads=rng.choice([4, 32, 64]),
        index_topk=rng.choice([2, 8, 32, 128]),
        n_routed_experts=rng.choice([4, 8, 16]),
        num_hash_layers=rng.randint(0, 2),
    )


def draw_model(config: ModelConfig, seed: int) -> Transformer:
    """Every weight random, norms, sinks and biases too."""
    model = initialize(Transformer(config), seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += noise * (0.3 if parameter.dim() < 2 or name.endswith("ape") else 0.1)
    return model.eval()


@dataclasses.dataclass
class Oracle:
    """What transformers computed, and what its indexers chose, by layer."""

    logits_TV: Tensor
    picks: dict[int, Tensor]
    near_T: Tensor
    """Queries with a near-tie in any layer."""


def ask(model: Transformer, ids: Tensor) -> Oracle:
    peer = reference(model)
    picks, scores, hooks = {}, {}, []
    for number, layer in enumerate(peer.model.layers):
        indexer = getattr(getattr(layer.self_attn, "compressor", None), "indexer", None)
        if indexer is not None:
            hooks.append(indexer.register_forward_hook(_keep(picks, number)))
            hooks.append(indexer.scorer.register_forward_hook(_keep(scores, number)))
    logits = peer(input_ids=ids, use_cache=False).logits[0]
    near = torch.zeros(ids.shape[1], dtype=torch.bool)
    limits = (torch.arange(ids.shape[1]) + 1) // 4
    topk = model.config.index_topk
    for found in scores.values():
        if found.shape[-1] > topk:
            visible = torch.arange(found.shape[-1]) < limits.unsqueeze(1)
            best = found[0].masked_fill(~visible, -math.inf).topk(topk + 1).values
            last, out = best[:, -2], best[:, -1]
            near |= (limits > topk) & ((last - out) <= NEAR * last.abs().clamp(min=1e-30))
    return Oracle(logits, {layer: _ours(found, limits) for layer, found in picks.items()}, near)


def _keep(found: dict[int, Tensor], number: int) -> Callable[..., None]:
    def hook(module: object, inputs: object, output: Tensor) -> None:
        found[number] = output.detach()

    return hook


def _ours(picks_BTK: Tensor, limits_T: Tensor) -> Tensor:
    """Their choice in our form: visible ones ascending, then -1."""
    hidden = (picks_BTK < 0) | (picks_BTK >= limits_T.view(1, -1, 1))
    order = picks_BTK.masked_fill(hidden, 1 << 30).sort(-1).values
    return torch.where(order == 1 << 30, -1, order).int()[0]


class Choices:
    """Records what our indexers choose, or forces the oracle's choice on them."""

    def __init__(self, model: Transformer, forced: dict[int, Tensor] | None = None) -> None:
        self.model, self.forced = model, forced
        self.recorded: dict[int, list[Tensor]] = {}
        self.starts = [0]
        """Position of each row's first token in the coming call."""

    @contextmanager
    def __call__(self) -> Iterator[Choices]:
        layers = [m for m in self.model.modules() if isinstance(m, Attention) and m.indexer]
        for layer in layers:
            layer.indexer.select = self._select(layer)  # type: ignore[union-attr]
        yield self
        for layer in layers:
            del layer.indexer.select  # type: ignore[union-attr]

    def _select(self, layer: Attention) -> Callable[..., Tensor]:
        choose = layer.indexer.select  # type: ignore[union-attr]

        def select(q: Tensor, weights: Tensor, keys: Entries, limits: Tensor) -> Tensor:
            if self.forced is None:
                picks = choose(q, weights, keys, limits)
                self.recorded.setdefault(layer.layer, []).append(picks[0])
                return picks
            picks = self.forced[layer.layer]
            rows = [torch.arange(s, s + q.shape[1]).clamp(max=len(picks) - 1) for s in self.starts]
            forced = torch.stack([picks[row] for row in rows])
            return forced.where(forced < keys.length, -1)

        return select


def cuts_of(size: int) -> range:
    return range(0, size, PREFILL_CHUNK)


def in_pieces(model: Transformer, ids: Tensor, sizes: list[int], choices: Choices) -> Tensor:
    state, parts, start = model.new_state(), [], 0
    # a longer call is cut by the model, which the forced choice would not see
    sizes = [min(PREFILL_CHUNK, size - done) for size in sizes for done in cuts_of(size)]
    for chunk in ids.split(sizes, dim=1):
        choices.starts = [start]
        parts.append(model(chunk, state))
        start += chunk.shape[1]
    return torch.cat(parts, dim=1)[0]


def ragged(model: Transformer, ids: Tensor, rng: random.Random, choices: Choices) -> list[Tensor]:
    """Three rows: the text and two beginnings of it, in two calls of unequal lengths each."""
    ids = ids[:, :PREFILL_CHUNK]
    total = ids.shape[1]
    lengths = [total, rng.randint(1, total), rng.randint(1, total)]
    cuts = [rng.randint(0, length) for length in lengths]
    state, rows = model.new_state(3), [[], [], []]
    for begins, ends in (([0, 0, 0], cuts), (cuts, lengths)):
        counts = [end - begin for begin, end in zip(begins, ends, strict=True)]
        padded = torch.zeros(3, max(*counts, 1), dtype=torch.int64)
        for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            padded[row, : end - begin] = ids[0, begin:end]
        choices.starts = begins
        logits = model(padded, state, counts_B=torch.tensor(counts))
        for row, count in enumerate(counts):
            rows[row].append(logits[row, :count])
    return [torch.cat(parts) for parts in rows]


def fixed_width(picks_TK: Tensor) -> Tensor:
    return functional.pad(picks_TK, (0, 4096 - picks_TK.shape[1]), value=-1)


def worst(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest logit; 0 for no positions."""
    if not len(ours):
        return 0.0
    return float((ours - theirs[: len(ours)]).abs().max() / theirs.abs().max())


@torch.no_grad()
def measure(number: int, longest: int) -> dict[str, object]:
    rng = random.Random(number)
    config = draw_config(rng)
    model = draw_model(config, number)
    length = min(longest, round(math.exp(rng.uniform(0, math.log(longest + 1)))))
    if number % 3 == 0:
        length = rng.randint(longest // 2, longest)
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, config.vocab_size, (1, length), generator=generator)
    oracle = ask(model, ids)
    clean = int(oracle.near_T.nonzero()[0]) if oracle.near_T.any() else length
    with Choices(model)() as free:
        ours = model(ids)[0]
    differing = 0
    for layer, parts in free.recorded.items():
        mine = torch.cat(
            [torch.nn.functional.pad(p, (0, 4096 - p.shape[1]), value=-1) for p in parts]
        )
        wanted = oracle.picks[layer]
        wanted = torch.nn.functional.pad(wanted, (0, 4096 - wanted.shape[1]), value=-1)
        same = (mine == wanted[length - len(mine) :]).all(-1)
        differing += int((~same)[: max(0, clean - (length - len(mine)))].sum())
    with Choices(model, oracle.picks)() as forced:
        whole = in_pieces(model, ids, [length], forced)
        cuts = [rng.randint(1, max(1, length // 4)) for _ in range(40)]
        while sum(cuts) < length:
            cuts.append(rng.randint(1, length))
        chunked = in_pieces(model, ids, _fit(cuts, length), forced)
        batched = ragged(model, ids, rng, forced)
    stepped = in_pieces(model, ids[:, :clean], [1] * clean, free) if clean else whole[:0]
    return {
        "config": number,
        "layers": "/".join(map(str, config.compress_ratios[: config.num_hidden_layers])),
        "index_heads": config.index_n_heads,
        "topk": config.index_topk,
        "tokens": length,
        "near_ties": int(oracle.near_T.sum()),
        "free_positions": clean,
        "free": worst(ours[:clean], oracle.logits_TV),
        "forced": worst(whole, oracle.logits_TV),
        "sets_differing": differing,
        "chunked": worst(chunked, whole),
        "stepped": worst(stepped, whole),
        "ragged": max(worst(row, whole) for row in batched),
    }


def _fit(cuts: list[int], length: int) -> list[int]:
    sizes: list[int] = []
    for cut in cuts:
        if sum(sizes) < length:
            sizes.append(min(cut, length - sum(sizes)))
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=int, default=30)
    parser.add_argument("--longest", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for number in range(options.configs):
        rows.append(measure(number, options.longest))
        shown = {k: f"{v:.1e}" if isinstance(v, float) else v for k, v in rows[-1].items()}
        print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
    write_results("model_parity", rows)
    bad = [
        row
        for row in rows
        if row["sets_differing"]
        or max(row[key] for key in ("free", "forced", "chunked", "stepped", "ragged")) > BAR
    ]
    print(
        f"{len(rows) - len(bad)} of {len(rows)} configurations within {BAR:g} of the logits' scale"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
