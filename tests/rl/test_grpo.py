"""The objective against what it must equal, and infrastructure errors kept out of it."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baleen.agent.outcome import Outcome
from baleen.errors import RunError
from baleen.rl.grpo import GRPOConfig, advantages, draw_groups, policy_loss, update
from baleen.rl.rollout import Rollout
from baleen.rl.statistics import Rate
from baleen.rl.tasks import Split, Task, arithmetic_task


def a_task() -> Task:
    return arithmetic_task(random.Random(0), Split.TRAIN)


def test_on_policy_gradient_is_reinforce_with_a_mean_baseline() -> None:
    logits = torch.randn(6, 5, requires_grad=True)
    chosen = torch.randint(0, 5, (6,))
    advantage = advantages(torch.tensor([1.0, 0, 0, 1, 0, 0]))
    logprobs = logits.log_softmax(-1)[torch.arange(6), chosen]
    policy_loss(logprobs, logprobs.detach(), advantage, 0.2, 0.28).backward()
    ours = logits.grad
    logits.grad = None
    (-(advantage * logits.log_softmax(-1)[torch.arange(6), chosen]).sum()).backward()
    assert ours is not None
    assert torch.allclose(ours, logits.grad)


@pytest.mark.parametrize(("ratio", "advantage"), [(1.5, 1.0), (0.5, -1.0)])
def test_moving_further_than_the_clip_earns_no_gradient(ratio: float, advantage: float) -> None:
    logprobs = torch.tensor([ratio]).log().requires_grad_()
    policy_loss(logprobs, torch.zeros(1), torch.tensor([advantage]), 0.2, 0.28).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=16))
def test_advantages_sum_to_zero(rewards: list[float]) -> None:
    assert abs(float(advantages(torch.tensor(rewards)).sum())) < 1e-4


def test_an_infrastructure_error_is_no_reward_and_no_member() -> None:
    broken = Rollout(a_task(), [1], [True], [0.0], Outcome.INFRA_ERROR, cause="box-gone")
    assert not broken.is_valid
    right = Rollout(a_task(), [1], [True], [0.0], Outcome.STOP, a_task().answer)
    assert right.reward == 1.0
    assert Rollout(a_task(), [1], [True], [0.0], Outcome.BUDGET, a_task().answer).reward == 0.0


def test_a_step_of_nothing_but_infrastructure_errors_is_refused() -> None:
    broken = Rollout(a_task(), [1], [True], [0.0], Outcome.INFRA_ERROR, cause="box-gone")
    with pytest.raises(RunError, match="box-gone"):
        update(None, None, [[broken, broken]], None, GRPOConfig())  # type: ignore[arg-type]


def test_groups_depend_on_seed_and_step_only() -> None:
    config = GRPOConfig(groups=4)
    assert draw_groups(0, 3, config) == draw_groups(0, 3, config)
    assert draw_groups(0, 3, config) != draw_groups(0, 4, config)


@pytest.mark.parametrize(
    ("rate", "low", "high"), [(Rate(8, 10), 0.490, 0.943), (Rate(0, 10), 0.0, 0.278)]
)
def test_wilson_interval(rate: Rate, low: float, high: float) -> None:
    assert rate.interval == pytest.approx((low, high), abs=5e-4)
