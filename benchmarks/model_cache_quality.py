"""What packed caches cost in quality: the indexer's recall in fp4, and look-up tasks by cache kind.

    python benchmarks/model_cache_quality.py [--tasks 200]

The bundled model answers unseen look-up and arithmetic tasks with real sandboxes, greedily, its
cache in fp32, bf16 and fp8 (keys of the indexer in fp4). In the fp32 run each choice of blocks is
made a second time with the same keys in fp4; recall is the share of the fp32 choice that fp4 keys
hold, over queries that see more blocks than they may keep. Prints and writes
`benchmarks/results/model_cache_quality.csv`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from results import write_results
from torch import Tensor

from baleen.engine import Engine
from baleen.kernels import Entries, Kind, Layout
from baleen.model import Transformer
from baleen.model.indexer import Indexer
from baleen.rl.corpus import EpisodeEncoder
from baleen.rl.evaluate import DRAWS, evaluate

PAGE = 64


class Recall:
    """Compares every choice with the one that fp4 keys would lead to."""

    def __init__(self) -> None:
        self.kept = self.chosen = 0

    @contextmanager
    def watching(self, model: Transformer) -> Iterator[Recall]:
        indexers = [module for module in model.modules() if isinstance(module, Indexer)]
        for indexer in indexers:
            indexer.select = self._comparing(indexer.select)  # type: ignore[method-assign]
        try:
            yield self
        finally:
            for indexer in indexers:
                del indexer.select

    def _comparing(self, select: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def compared(q: Tensor, weights: Tensor, keys: Entries, limits: Tensor) -> Tensor:
            picks = select(q, weights, keys, limits)
            packed = select(q, weights, in_fp4(keys), limits)
            selective_BT1 = (limits > picks.shape[-1]).expand(picks.shape[:2]).unsqueeze(-1)
            valid = (picks >= 0) & selective_BT1
            found = (picks.unsqueeze(-1) == packed.unsqueeze(-2)).any(-1)
            self.chosen += int(valid.sum())
            self.kept += int((valid & found).sum())
            return picks

        return compared


def in_fp4(keys: Entries) -> Entries:
    """The same keys, packed."""
    values = keys.values()
    batch, count, width = values.shape
    layout = Layout(Kind.FP4, width, 0, PAGE)
    data = layout.empty(batch, count)
    rows = torch.arange(batch).repeat_interleave(count)
    layout.put(data, rows, torch.arange(count).repeat(batch), values.flatten(0, 1))
    return Entries(data, count, layout)


@contextmanager
def cached_as(model: Transformer, kv: str) -> Iterator[None]:
    """New states of the model are of this kind."""
    model.new_state = functools.partial(model.new_state, kv_dtype=kv)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.new_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200, help="unseen tasks per family")
    options = parser.parse_args()
    engine = Engine.load("nano", num_threads=1)
    encoder = EpisodeEncoder(engine.tokenizer)
    rows = []
    for kv in ("fp32", "bf16", "fp8"):
        for family in DRAWS:
            recall = Recall()
            with cached_as(engine.model, kv):
                if kv == "fp32":
                    with recall.watching(engine.model):
                        score = evaluate(engine.model, encoder, family, options.tasks, 0.0, True)
                else:
                    score = evaluate(engine.model, encoder, family, options.tasks, 0.0, True)
            low, high = score.rate.interval
            rows.append(
                {
                    "kv": kv,
                    "family": family.value,
                    "pass_at_1": round(score.rate.value, 4),
                    "low_95": round(low, 4),
                    "high_95": round(high, 4),
                    "tasks": score.rate.trials,
                    "fp4_recall": round(recall.kept / recall.chosen, 4) if recall.chosen else "",
                    "choices": recall.chosen,
                }
            )
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_results("model_cache_quality", rows)


if __name__ == "__main__":
    main()
