"""Supervised training of the small checkpoint, in three stages of one run.

1. dense: clean solutions, CSA attends every block while the indexer learns from that attention;
2. sparse: clean solutions, CSA attends the indexer's choice only;
3. mixed: imperfect solutions, which leave RL something to learn.

Every few steps a snapshot is written, and a run that was killed goes on from it.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import random
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from tokenizers import Tokenizer

from baleen.model import ModelConfig, Trace, Transformer, initialize
from baleen.model.losses import balance_experts, expert_loads, indexer_loss
from baleen.rl import demonstrations
from baleen.rl.corpus import EpisodeEncoder, batch_tensors, by_length
from baleen.rl.objective import (
    clip_gradients,
    forward_behind_prefix,
    sampled_logprobs,
    set_selection,
)
from baleen.rl.optimizer import HybridOptimizer
from baleen.rl.parallel import average_gradients, total, world_size
from baleen.rl.snapshot import restore_snapshot, save_snapshot
from baleen.rl.tasks import Split


class Stage(StrEnum):
    DENSE = "dense"
    SPARSE = "sparse"
    MIXED = "mixed"


@dataclass(frozen=True)
class SFTConfig:
    """Sizes and rates of the run."""

    dense_steps: int = 700
    sparse_steps: int = 300
    mixed_steps: int = 60
    episodes_per_step: int = 32
    """Over all workers."""
    lr_matrix: float = 0.006
    """Muon's; its updates have RMS 0.18 times this."""
    lr_other: float = 0.003
    weight_decay: float = 0.01
    warmup_steps: int = 60
    final_lr: float = 0.05
    """What the rates have come down to, by a cosine, at the end of the sparse stage."""
    clip: float = 1.0
    seed: int = 20
    log_every: int = 20
    snapshot_every: int = 100

    @property
    def total_steps(self) -> int:
        return self.dense_steps + self.sparse_steps + self.mixed_steps

    def stage(self, step: int) -> Stage:
        if step < self.dense_steps:
            return Stage.DENSE
        return Stage.SPARSE if step < self.dense_steps + self.sparse_steps else Stage.MIXED

    def lr_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to `final_lr`, which the mixed stage keeps."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        clean = self.dense_steps + self.sparse_steps
        done = min((step - self.warmup_steps) / max(1, clean - self.warmup_steps), 1.0)
        return self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * done)) / 2


def train_sft(rank: int, model_config: dict[str, object], config: SFTConfig, folder: Path) -> None:
    """Trains into `folder`: `clean/` and `sft/` (model folders), `sft.csv` (the curve).

    Runs in every worker; only rank 0 writes. `folder` already holds `tokenizer.json`.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = EpisodeEncoder(tokenizer)
    model = initialize(Transformer(ModelConfig.from_hf(model_config)), config.seed)
    optimizer = HybridOptimizer(model, config.lr_matrix, config.lr_other, config.weight_decay)
    first = restore_snapshot(folder / "snapshot.pt", model, optimizer)
    log = CurveLog(folder / "sft.csv", first) if rank == 0 else None
    for step in range(first, config.total_steps):
        stage = config.stage(step)
        set_selection(model, sparse=stage is not Stage.DENSE)
        if rank == 0 and step == config.dense_steps + config.sparse_steps:
            model.save_pretrained(folder / "clean", format="fp32")
        metrics = _step(rank, step, stage, model, optimizer, encoder, config)
        if log and (step % config.log_every == 0 or step == config.total_steps - 1):
            log.write(step, stage, metrics)
        if rank == 0 and (step + 1) % config.snapshot_every == 0:
            save_snapshot(folder / "snapshot.pt", model, optimizer, step + 1)
    if rank == 0:
        model.save_pretrained(folder / "sft", format="fp32")
        (folder / "snapshot.pt").unlink(missing_ok=True)


def _step(
    rank: int,
    step: int,
    stage: Stage,
    model: Transformer,
    optimizer: HybridOptimizer,
    encoder: EpisodeEncoder,
    config: SFTConfig,
) -> dict[str, float]:
    rng = random.Random(f"{config.seed}|{step}|{rank}")
    solve = demonstrations.imperfect if stage is Stage.MIXED else demonstrations.clean
    tasks = [
        demonstrations.draw_task(rng, Split.TRAIN)
        for _ in range(config.episodes_per_step // world_size())
    ]
    episodes = [encoder.encode(task, solve(rng, task)) for task in tasks]
    batches = [batch_tensors(group) for group in by_length(episodes, 2)]
    traces = [Trace(teaches_indexer=True) for _ in batches]
    hidden = forward_behind_prefix(model, encoder.prefix, [x for x, _ in batches], traces)
    logprobs = [
        sampled_logprobs(model, part, targets)
        for part, (_, targets) in zip(hidden, batches, strict=True)
    ]
    loss, lesson = -torch.cat(logprobs).mean(), indexer_loss(traces)
    (loss + lesson).backward()
    average_gradients(model)
    norm = clip_gradients(model, config.clip)
    optimizer.step(config.lr_factor(step))
    model.zero_grad(set_to_none=True)
    balance_experts(model, total(expert_loads(model, traces)))  # all ranks move alike
    tokens = sum(len(episode.token_ids) for episode in episodes)
    shared = total(torch.tensor([loss.item(), lesson.item(), float(tokens)]))
    return {
        "loss": shared[0].item() / world_size(),
        "indexer_kl": shared[1].item() / world_size(),
        "tokens": shared[2].item(),
        "grad_norm": norm,
    }


class CurveLog:
    """Appends a CSV row and prints a line now and then."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path, self.started, self.tokens = path, time.monotonic(), 0.0
        if first_step == 0:
            path.unlink(missing_ok=True)

    def write(self, step: int, stage: Stage, metrics: dict[str, float]) -> None:
        row: dict[str, object] = {
            "step": step,
            "stage": stage.value,
            "elapsed_s": round(time.monotonic() - self.started, 1),
        }
        row |= {name: round(value, 5) for name, value in metrics.items()}
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def shortened(config: SFTConfig, factor: float) -> SFTConfig:
    """The same run with `factor` times the steps, for tests and trials."""
    return dataclasses.replace(
        config,
        dense_steps=max(1, int(config.dense_steps * factor)),
        sparse_steps=max(1, int(config.sparse_steps * factor)),
        mixed_steps=max(1, int(config.mixed_steps * factor)),
    )
