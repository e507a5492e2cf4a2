"""What depth adds to a decoded token, by part, to a million tokens of context.

    python benchmarks/decode_depth.py [--depths 1024 8192 32768 131072 1048576] [--kv bf16]

The model of `model_speed.py` (six layers 0, 0, 4, 128, 4, 128; index 4 x 128; packed weights), one
thread, batch 1. The cache is filled with random entries instead of a prefill of hours; what a step
costs depends on how many there are, not on what they say. Milliseconds, least of the repeats:

- `step`: a token through all layers, as decoding does it;
- `scan`: the indexer's scoring and choice in one CSA layer;
- `hca`: attention of one HCA layer, which sees a block per 128 tokens, all of them;
- `csa`, `swa`: attention of one CSA layer over the window and its 64 chosen blocks, and of a layer
  over its window alone;
- `rest`: the step without the scans and attentions of all its layers;
- `shallow_rest`: the rest at the first depth, when before each token as many bytes of foreign
  memory are read as the scans at this depth read. What they push out of the processor's caches,
  weights above all, has to come back: that much `rest` may grow without doing more.

Only `scan` and `hca` have a reason to grow. Writes `benchmarks/results/decode_depth.csv`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from model_speed import CONFIG
from results import write_results

from baleen.cache import State
from baleen.cache.blocks import DisjointState, OverlapState
from baleen.kernels import select_blocks
from baleen.kernels.attend import Blocks, attend
from baleen.model import Transformer, initialize

Call = Callable[[], object]
ROOM = 512
"""Tokens that fit behind the depth."""


def deep_state(model: Transformer, depth: int, kv: str) -> State:
    """A state that holds `depth` tokens, of which nothing is known."""
    state = model.new_state(kv_dtype=kv, max_len=depth + ROOM)
    state.lengths_B = torch.tensor([depth])
    for layer in state.layers:
        fill(layer.window.data)
        for _, part in layer.parts():
            fill_blocks(part, depth)
    return state


def fill_blocks(part: OverlapState | DisjointState, depth: int) -> None:
    blocks = depth // part.ratio
    part.entries.reserve(blocks)
    fill(part.entries.data)
    part.entries.wrote(blocks)


def fill(data: torch.Tensor) -> None:
    """Random numbers of size 1, or random codes under moderate scales."""
    if data.is_floating_point():
        data.normal_()
    else:
        data.random_(120, 128)


def least_ms(run: Call, repeats: int, before: Call | None = None) -> float:
    best = float("inf")
    for _ in range(repeats):
        if before is not None:
            before()
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best * 1e3


class Depth:
    """A model with a past of so many tokens."""

    def __init__(self, model: Transformer, depth: int, kv: str, repeats: int) -> None:
        self.model, self.depth, self.repeats = model, depth, repeats
        self.state = deep_state(model, depth, kv)
        self.scans, self.looks = parts_of(model, self.state, depth)

    @property
    def scanned_bytes(self) -> int:
        """What one token's scans read."""
        indexers = [layer.indexer for layer in self.state.layers if layer.indexer is not None]
        return sum(part.entries.data.nbytes for part in indexers)

    def step_ms(self, before: Call | None = None) -> float:
        token = torch.tensor([[1]])

        def step() -> None:
            mark = self.state.mark()
            self.model(token, self.state, logits_to_keep=1)
            self.state.rollback(mark)

        return least_ms(step, self.repeats, before)

    def parts_ms(self) -> dict[str, float]:
        """All of a kind together."""
        parts = {"scan_ms": self.scans, **self.looks}
        return {
            name: least_ms(lambda calls=calls: [call() for call in calls], self.repeats)  # type: ignore[misc]
            for name, calls in parts.items()
        }

    def row(self, shallow: Depth) -> dict[str, float]:
        """Parts per layer, and the rest."""
        parts, step_ms = self.parts_ms(), self.step_ms()
        counts = {"scan_ms": len(self.scans), **{name: len(c) for name, c in self.looks.items()}}
        row = {name: value / counts[name] for name, value in parts.items()}
        foreign = torch.ones(self.scanned_bytes // 4)
        cold_ms = shallow.step_ms(before=foreign.sum) - sum(shallow.parts_ms().values())
        row = {"step_ms": step_ms, **row, "rest_ms": step_ms - sum(parts.values())}
        row["shallow_rest_ms"] = cold_ms
        return {"depth": self.depth, **{name: round(value, 4) for name, value in row.items()}}


def parts_of(
    model: Transformer, state: State, depth: int
) -> tuple[list[Call], dict[str, list[Call]]]:
    """The indexers' scans and the layers' attentions of one token, as calls of their own.

    Those of one kind are timed one after the other, as a step runs them: what a layer reads has
    left the processor's caches when its turn comes again, if the layers together need more.
    """
    config = model.config
    heads, starts = config.num_attention_heads, torch.tensor([depth])
    query, latent = torch.randn(1, 1, heads, config.head_dim), torch.randn(1, 1, config.head_dim)
    index_query = torch.randn(1, 1, config.index_n_heads, config.index_head_dim)
    index_weights, sinks = torch.randn(1, 1, config.index_n_heads), torch.zeros(heads)
    scans: list[Call] = []
    looks: dict[str, list[Call]] = {"hca_ms": [], "csa_ms": [], "swa_ms": []}
    for kind, layer in zip(config.layer_kinds, state.layers, strict=True):
        blocks = None
        if layer.compressor is not None:
            limits, picks = torch.tensor([[depth // layer.compressor.ratio]]), None
            if layer.indexer is not None:
                keys = layer.indexer.entries.view
                scan = partial(
                    select_blocks, index_query, index_weights, keys, limits, config.index_topk
                )
                scans.append(scan)
                picks = scan()
            blocks = Blocks(layer.compressor.entries.view, limits, picks)
        look = partial(attend, query, sinks, layer.window.view, latent, starts, blocks)
        looks[f"{kind.name.lower()}_ms"].append(look)
    return scans, looks


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--depths", type=int, nargs="+", default=[1 << 10, 1 << 13, 1 << 15, 1 << 17, 1 << 20]
    )
    parser.add_argument("--kv", default="bf16")
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        initialize(Transformer(CONFIG), 0).save_pretrained(folder, format="fp4")
        model = Transformer.from_pretrained(folder, weights="packed")
    rows: list[dict[str, object]] = []
    shallow = Depth(model, options.depths[0], options.kv, options.repeats)
    for tokens in options.depths:
        depth = Depth(model, tokens, options.kv, options.repeats)
        rows.append({"kv": options.kv, **depth.row(shallow)})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_results("decode_depth", rows)


if __name__ == "__main__":
    main()
