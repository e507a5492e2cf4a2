"""What one more token costs by part, from a thousand tokens of context to a million.

    python benchmarks/decode_depth.py [--depths 1024 32768 131072 1048576] [--kv bf16]

The model of `model_speed.py` in bf16, one thread. The past is drawn, not computed: the cost of a
token depends on how much there is and not on what. Microseconds, of each part the least of 200
tokens, which neighbours on the machine disturb least; `other` is Python and the head. Prints and
writes `benchmarks/results/decode_depth.csv`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from model_speed import CONFIG, save
from parts import PartClock
from results import write_results

from baleen.cache import State
from baleen.model import Transformer

STEPS = 200


def drawn_past(model: Transformer, depth: int, kv: str) -> State:
    """A state as `depth` tokens leave it, of random numbers."""
    state = model.new_state(kv_dtype=kv)
    model(torch.zeros(1, 256, dtype=torch.int64), state)
    state.lengths_B = torch.tensor([depth])
    for layer in state.layers:
        for _, part in layer.parts():
            count, entries = depth // part.ratio, part.entries
            entries.reserve(count)
            for first in range(0, count, 4096):
                places = torch.arange(first, min(first + 4096, count))
                values = torch.randn(len(places), entries.layout.width)
                entries.layout.put(entries.data, torch.zeros(1, dtype=torch.int64), places, values)
            entries.truncate(torch.tensor([count]))
    return state


@torch.no_grad()
def measure(model: Transformer, depth: int, kv: str) -> dict[str, float | str]:
    state, clock = drawn_past(model, depth, kv), PartClock()
    steps: list[dict[str, float]] = []
    with clock.watching(model):
        for token in range(STEPS):
            started = time.perf_counter()
            model(torch.tensor([[token]]), state, logits_to_keep=1)
            total_s = time.perf_counter() - started
            steps.append({"total": total_s, **clock.take(total_s)})
    least = {name: min(step[name] for step in steps) for name in steps[0]}
    return {"depth": depth, **{f"{name}_us": round(s * 1e6, 1) for name, s in least.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[1 << n for n in (10, 15, 17, 20)])
    parser.add_argument("--kv", default="bf16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        save(Path(scratch) / "model")
        folder = Path(scratch) / "model"
        model = Transformer.from_pretrained(folder, dtype=torch.bfloat16, weights="packed").eval()
    rows = []
    for depth in options.depths:
        rows.append(
            {"kv": options.kv, "heads x width": _index(), **measure(model, depth, options.kv)}
        )
        print(json.dumps(rows[-1]), flush=True)
    write_results("decode_depth", rows)


def _index() -> str:
    return f"{CONFIG.index_n_heads} x {CONFIG.index_head_dim}"


if __name__ == "__main__":
    main()
