"""Group-relative policy optimisation with real sandbox calls in the loop.

Per task a group of episodes is sampled; each is credited with its reward minus the group's mean.
Source: DeepSeekMath, arXiv 2402.03300; centred advantages as in the DeepSeek-V3.2 report;
asymmetric clipping and the token mean as in DAPO, arXiv 2503.14476. Episodes that the
infrastructure broke are no evidence about the policy: they enter no mean and no gradient.
"""

from __future__ import annotations

import asyncio
import csv
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from baleen.agent.outcome import Outcome
from baleen.engine import Sampling
from baleen.errors import RunError
from baleen.model import Transformer
from baleen.model.losses import IGNORED
from baleen.rl.corpus import EpisodeEncoder, batch_tensors
from baleen.rl.objective import clip_gradients, forward_behind_prefix, sampled_logprobs
from baleen.rl.parallel import average_gradients, total, world_size
from baleen.rl.rollout import MAX_TURN_TOKENS, Rollout, run_rollouts
from baleen.rl.tasks import Split, Task, arithmetic_task, lookup_task, other_task

FAMILY_CYCLE = (lookup_task, lookup_task, arithmetic_task, lookup_task)
OTHER_EVERY = 16
"""One group in so many asks for something else, so that the policy keeps declining it."""


@dataclass(frozen=True)
class GRPOConfig:
    """Sizes and rates of the run."""

    steps: int = 50
    groups: int = 16
    """Tasks per step, over all workers."""
    group_size: int = 8
    lr: float = 2e-4
    """At the first step; it falls to a tenth in a straight line, so late steps undo nothing."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    grad_clip: float = 1.0
    temperature: float = 1.0
    microbatch: int = 16
    seed: int = 40


def advantages(rewards: Tensor) -> Tensor:
    """Reward minus the group's mean."""
    return rewards - rewards.mean()


def policy_loss(
    logprobs: Tensor, old: Tensor, advantage: Tensor, low: float, high: float
) -> Tensor:
    """Sum over tokens of -min(r A, clip(r) A), r the probability ratio to the sampling policy."""
    ratio = (logprobs - old).exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio * advantage, clipped * advantage).sum()


def train_grpo(rank: int, source: Path, config: GRPOConfig, folder: Path) -> None:
    """Improves the policy in `source`; writes `folder/rl/` and `folder/grpo.csv`.

    Runs in every worker; only rank 0 writes.

    Raises:
        RunError: every episode of a step failed in the infrastructure.
    """
    encoder = EpisodeEncoder(Tokenizer.from_file(str(folder / "tokenizer.json")))
    model = Transformer.from_pretrained(source, dtype=torch.float32)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, config.lr, betas=(0.9, 0.95), weight_decay=0.0)
    path, started = folder / "grpo.csv", time.monotonic()
    if rank == 0:
        path.unlink(missing_ok=True)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - 0.9 * step / config.steps)
        groups = sample_groups(rank, step, model, encoder, config)
        metrics = update(model, optimizer, groups, encoder, config)
        metrics["elapsed_s"] = time.monotonic() - started
        if rank == 0:
            _log(path, step, metrics)
    if rank == 0:
        model.save_pretrained(folder / "rl", format="fp32")


def draw_groups(rank: int, step: int, config: GRPOConfig) -> list[Task]:
    """This worker's tasks of one step; they depend on the seed, the step and the rank only."""
    share = config.groups // world_size()
    tasks = []
    for number in range(rank * share, (rank + 1) * share):
        rng = random.Random(f"{config.seed}|{step}|{number}")
        is_other = (step * config.groups + number) % OTHER_EVERY == OTHER_EVERY - 1
        draw = other_task if is_other else FAMILY_CYCLE[number % len(FAMILY_CYCLE)]
        tasks.append(draw(rng, Split.TRAIN))
    return tasks


def sample_groups(
    rank: int, step: int, model: Transformer, encoder: EpisodeEncoder, config: GRPOConfig
) -> list[list[Rollout]]:
    """`group_size` episodes of each of this worker's tasks."""
    tasks = draw_groups(rank, step, config)
    each = [task for task in tasks for _ in range(config.group_size)]
    seeds = [f"{config.seed}|{step}|{rank}|{number}" for number in range(len(each))]
    sampling = Sampling(temperature=config.temperature, max_tokens=MAX_TURN_TOKENS)
    rollouts = asyncio.run(
        run_rollouts(model, encoder, each, seeds, sampling, f"grpo-{config.seed}-{step}")
    )
    size = config.group_size
    return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]


def update(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[Rollout]],
    encoder: EpisodeEncoder,
    config: GRPOConfig,
) -> dict[str, float]:
    """One gradient step on all groups of all workers."""
    learned: list[tuple[Rollout, float]] = []
    for group in groups:
        valid = [rollout for rollout in group if rollout.is_valid]
        rewards = torch.tensor([rollout.reward for rollout in valid])
        if len(valid) > 1 and rewards.min() != rewards.max():  # else there is nothing to prefer
            learned += zip(valid, advantages(rewards).tolist(), strict=True)
    num_tokens = total(torch.tensor(float(sum(len(r.logprobs) for r, _ in learned))))
    if num_tokens == 0:
        return _metrics(groups, 0.0, 0.0)
    gap = 0.0
    learned.sort(key=lambda pair: len(pair[0].token_ids))  # little padding
    for start in range(0, len(learned), config.microbatch):
        gap += _accumulate(
            model, learned[start : start + config.microbatch], encoder, config, num_tokens
        )
    average_gradients(model)
    norm = clip_gradients(model, config.grad_clip)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    return _metrics(groups, norm, gap / float(num_tokens) * world_size())


def _accumulate(
    model: Transformer,
    part: Sequence[tuple[Rollout, float]],
    encoder: EpisodeEncoder,
    config: GRPOConfig,
    num_tokens: Tensor,
) -> float:
    """Adds one microbatch's gradient; returns the summed gap between trainer's and engine's
    log-probabilities, which should be rounding only."""
    inputs, targets = batch_tensors([rollout.episode for rollout, _ in part])
    (hidden,) = forward_behind_prefix(model, encoder.prefix, [inputs], [None])
    logprobs = sampled_logprobs(model, hidden, targets)
    old = torch.tensor([value for rollout, _ in part for value in rollout.logprobs])
    credit = torch.tensor([value for _, value in part])
    advantage = credit.unsqueeze(1).expand_as(targets)[targets != IGNORED]
    loss = policy_loss(logprobs, old, advantage, config.clip_low, config.clip_high)
    # gradients are averaged over workers, and the mean is over the tokens of all of them
    (loss / num_tokens * world_size()).backward()
    return float((logprobs.detach() - old).abs().sum())


def _metrics(groups: Sequence[Sequence[Rollout]], norm: float, gap: float) -> dict[str, float]:
    rollouts = [rollout for group in groups for rollout in group]
    valid = [rollout for rollout in rollouts if rollout.is_valid]
    counts = total(
        torch.tensor(
            [
                sum(r.reward for r in valid),
                float(len(valid)),
                float(len(rollouts) - len(valid)),
                float(sum(bool(r.commands) for r in valid)),
                float(sum(r.outcome is Outcome.BUDGET for r in valid)),
                float(sum(r.outcome is Outcome.MODEL_ERROR for r in valid)),
                float(sum(len(r.logprobs) for r in rollouts)),
                gap / world_size(),
            ],
            dtype=torch.float64,
        )
    ).tolist()
    if counts[1] == 0:
        causes = sorted({rollout.cause for rollout in rollouts})
        raise RunError(
            f"all {len(rollouts)} episodes failed in the infrastructure: {', '.join(causes)}",
            remedy="run `baleen doctor`",
        )
    return {
        "reward": counts[0] / counts[1],
        "infra_errors": counts[2],
        "tool_use": counts[3] / counts[1],
        "budget": counts[4] / counts[1],
        "model_error": counts[5] / counts[1],
        "sampled_tokens": counts[6],
        "logprob_gap": counts[7],
        "grad_norm": norm,
    }


def _log(path: Path, step: int, metrics: dict[str, float]) -> None:
    row = {"step": step, **{name: float(f"{value:.4g}") for name, value in metrics.items()}}
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
