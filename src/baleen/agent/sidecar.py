"""The token sidecar: what a trainer needs of a run and a reader of text does not.

A list of segments; each has, per turn, the full prompt, the completion as sampled, and its
log-probabilities, under the names of Harbor's rollout detail. The context of a run only grows, so
there is one segment: every prompt begins with the prompt and completion before it.
"""

from __future__ import annotations

from typing import Any

from baleen.agent.history import History


def segments(history: History) -> list[dict[str, Any]]:
    """The segments of a run; empty when its endpoint knows no token ids."""
    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    logprobs: list[list[float]] = []
    context: list[int] = []
    for turn in history.finished_turns:
        context += turn.prompt_ids
        prompts.append(list(context))
        completions.append(list(turn.token_ids))
        logprobs.append(list(turn.logprobs))
        context += turn.token_ids
    if not context:
        return []
    return [
        {
            "prompt_token_ids": prompts,
            "completion_token_ids": completions,
            "logprobs": logprobs,
            "extra": {"policy_version": [history.policy] * len(prompts)},
        }
    ]
