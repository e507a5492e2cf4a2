"""Pass@1 of a policy on unseen tasks, its controls, and its ablations."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baleen.agent.outcome import Outcome
from baleen.engine import Sampling
from baleen.errors import RunError
from baleen.model import Transformer
from baleen.rl.corpus import EpisodeEncoder
from baleen.rl.rollout import MAX_TURN_TOKENS, Rollout, run_rollouts
from baleen.rl.statistics import Rate
from baleen.rl.tasks import Family, Split, Task, arithmetic_task, lookup_task

EVAL_SEED = 7
BATCH = 100
DRAWS: dict[Family, Callable[[random.Random, Split], Task]] = {
    Family.LOOKUP: lookup_task,
    Family.ARITHMETIC: arithmetic_task,
}


@dataclass(frozen=True)
class Score:
    """One policy under one condition on one family."""

    family: Family
    rate: Rate
    """Over the episodes that the infrastructure did not break."""
    outcomes: Counter[str]
    infra_errors: int


def unseen_tasks(family: Family, count: int) -> list[Task]:
    """The same tasks for every policy; their words, keys and numbers are in no training task."""
    rng = random.Random(f"{EVAL_SEED}|{family}")
    return [DRAWS[family](rng, Split.EVAL) for _ in range(count)]


def evaluate(
    model: Transformer,
    encoder: EpisodeEncoder,
    family: Family,
    count: int,
    temperature: float,
    tools: bool = True,
) -> Score:
    """One episode per task.

    Raises:
        RunError: the infrastructure broke every episode.
    """
    tasks = unseen_tasks(family, count)
    sampling = Sampling(temperature=temperature, max_tokens=MAX_TURN_TOKENS)
    rollouts: list[Rollout] = []
    for start in range(0, count, BATCH):
        part = tasks[start : start + BATCH]
        seeds = [f"eval|{family}|{start + number}" for number in range(len(part))]
        rollouts += asyncio.run(
            run_rollouts(model, encoder, part, seeds, sampling, f"eval-{family}", tools)
        )
    return score(family, rollouts)


def score(family: Family, rollouts: Sequence[Rollout]) -> Score:
    """Sums up; infrastructure errors are counted apart and enter no rate."""
    valid = [rollout for rollout in rollouts if rollout.is_valid]
    if not valid:
        causes = sorted({rollout.cause for rollout in rollouts})
        raise RunError(f"every episode failed in the infrastructure: {', '.join(causes)}")
    return Score(
        family,
        Rate(int(sum(rollout.reward for rollout in valid)), len(valid)),
        Counter(str(rollout.outcome) for rollout in valid),
        sum(rollout.outcome is Outcome.INFRA_ERROR for rollout in rollouts),
    )
