"""What the bundled checkpoint can do, and which of its parts it needs.

    python benchmarks/nano_quality.py [--tasks 500] [--workers 2] [--run DIR]

Prints and writes `benchmarks/results/nano_quality.csv`: pass@1 with 95 % Wilson intervals on unseen
tasks, with real sandboxes, for the shipped policy (greedy and at T=1), random weights, the
shipped policy with every tool output withheld, and with CSA, HCA and the indexer's choice each
switched off. `--run` names a training folder; then the supervised policy that RL started from is
measured too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from results import write_results

from baleen.engine import Engine
from baleen.model import Transformer, initialize
from baleen.rl.ablation import Part, without
from baleen.rl.corpus import EpisodeEncoder
from baleen.rl.evaluate import DRAWS, evaluate
from baleen.rl.tasks import Family


class Condition(NamedTuple):
    """One row but for the family."""

    name: str
    weights: str
    """"nano", "random", or a model folder."""
    temperature: float = 0.0
    tools: bool = True
    part: Part | None = None


def conditions(run: Path | None) -> list[Condition]:
    rows = [Condition("shipped, greedy", "nano"), Condition("shipped, T=1", "nano", 1.0)]
    if run is not None:
        rows.append(Condition("before RL, T=1", str(run / "sft"), 1.0))
        rows.append(Condition("before RL, greedy", str(run / "sft")))
    rows += [
        Condition("random weights, T=1", "random", 1.0),
        Condition("tool output withheld, greedy", "nano", tools=False),
    ]
    return rows + [Condition(f"without {part}, greedy", "nano", part=part) for part in Part]


@functools.cache
def load(weights: str) -> tuple[Transformer, EpisodeEncoder]:
    engine = Engine.load("nano", num_threads=1)
    model = engine.model
    if weights == "random":
        model = initialize(Transformer(model.config), 0)
    elif weights != "nano":
        model = Transformer.from_pretrained(weights, dtype=torch.float32)
    return model, EpisodeEncoder(engine.tokenizer)


def measure(condition: Condition, family: Family, tasks: int) -> dict[str, object]:
    model, encoder = load(condition.weights)
    started = time.monotonic()
    off = without(model, condition.part) if condition.part else contextlib.nullcontext()
    with off:
        score = evaluate(model, encoder, family, tasks, condition.temperature, condition.tools)
    low, high = score.rate.interval
    return {
        "policy": condition.name,
        "family": family.value,
        "pass_at_1": round(score.rate.value, 4),
        "low_95": round(low, 4),
        "high_95": round(high, 4),
        "tasks": score.rate.trials,
        "infra_errors": score.infra_errors,
        "elapsed_s": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=500, help="unseen tasks per family")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--run", type=Path, help="training folder with the supervised policy")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        jobs = [
            pool.submit(measure, condition, family, options.tasks)
            for condition in conditions(options.run)
            for family in DRAWS
        ]
        rows = []
        for job in jobs:
            rows.append(job.result())
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_results("nano_quality", rows)


if __name__ == "__main__":
    main()
