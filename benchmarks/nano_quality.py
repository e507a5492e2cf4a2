"""What the bundled checkpoint can do, and which of its parts it needs.

    python benchmarks/nano_quality.py [--tasks 500] [--run DIR]

Prints and writes `benchmarks/results/nano_quality.csv`: pass@1 with 95 % Wilson intervals on unseen
tasks, with real sandboxes, for the shipped policy (greedy and at temperature 1), the supervised
policy it was improved from and random weights, with the tool's output withheld, and with CSA, HCA
and the indexer's choice each switched off. `--run` names the training folder, which holds the
supervised policy; the shipped one is used without it, and those rows are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path

import torch
from results import write_results

from baleen.engine import Engine
from baleen.model import Transformer, initialize
from baleen.rl.ablation import Part, without
from baleen.rl.corpus import EpisodeEncoder
from baleen.rl.evaluate import DRAWS, evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=500, help="unseen tasks per family")
    parser.add_argument("--run", type=Path, help="training folder with the supervised policy")
    options = parser.parse_args()
    torch.set_num_threads(2)
    engine = Engine.load("nano")
    encoder = EpisodeEncoder(engine.tokenizer)
    shipped = engine.model
    conditions: list[tuple[str, Transformer, float, bool, Part | None]] = [
        ("shipped, greedy", shipped, 0.0, True, None),
        ("shipped, T=1", shipped, 1.0, True, None),
    ]
    if options.run:
        supervised = Transformer.from_pretrained(options.run / "sft", dtype=torch.float32)
        conditions.append(("before RL, T=1", supervised, 1.0, True, None))
        conditions.append(("before RL, greedy", supervised, 0.0, True, None))
    conditions += [
        ("random weights, T=1", initialize(Transformer(shipped.config), 0), 1.0, True, None),
        ("tool output withheld, greedy", shipped, 0.0, False, None),
        *((f"without {part}, greedy", shipped, 0.0, True, part) for part in Part),
    ]
    rows = []
    for name, model, temperature, tools, part in conditions:
        for family in DRAWS:
            started = time.monotonic()
            with without(model, part) if part else contextlib.nullcontext():
                result = evaluate(model, encoder, family, options.tasks, temperature, tools)
            low, high = result.rate.interval
            row = {
                "policy": name,
                "family": family.value,
                "pass_at_1": round(result.rate.value, 4),
                "low_95": round(low, 4),
                "high_95": round(high, 4),
                "tasks": result.rate.trials,
                "infra_errors": result.infra_errors,
                "elapsed_s": round(time.monotonic() - started, 1),
            }
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_results("nano_quality", rows)


if __name__ == "__main__":
    main()
