"""Solutions as token sequences: what the policy writes is trained on, what it reads is not.

The conversation goes through the same encoder that serves it, so training sees the prompts of a
run. All episodes begin with the same tokens (system line, Tools block, user token); that shared
prefix is kept once, see `EpisodeEncoder.prefix`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from baleen.agent.prompt import NANO
from baleen.errors import CheckpointError
from baleen.model.losses import IGNORED
from baleen.protocol import Encoder
from baleen.protocol.tokens import ASSISTANT, EOS, THINK_OPEN, USER
from baleen.rl.tasks import Call, Task, Trace


@dataclass(frozen=True)
class Episode:
    """One conversation behind the shared prefix."""

    token_ids: list[int]
    is_sampled: list[bool]
    """True where the policy wrote the token."""


def conversation(question: str, trace: Trace) -> list[dict[str, Any]]:
    """The messages of a solved task, in Chat Completions form."""
    messages: list[dict[str, Any]] = NANO.messages(question)
    for number, call in enumerate(trace.calls):
        messages += _turn(number, call)
    messages.append(
        {"role": "assistant", "reasoning_content": trace.reasoning, "content": trace.answer}
    )
    return messages


def _turn(number: int, call: Call) -> list[dict[str, Any]]:
    call_id = f"call_{number:02d}_{'0' * 24}"
    function = {"name": "bash", "arguments": json.dumps({"command": call.command})}
    return [
        {
            "role": "assistant",
            "reasoning_content": call.reasoning,
            "content": "",
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call_id, "content": call.output},
    ]


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    held: int | None = tokenizer.token_to_id(token)
    if held is None:
        raise CheckpointError(f"the tokenizer has no token {token!r}")
    return held


class EpisodeEncoder:
    """Conversations to tokens, under the prompt that the bundled checkpoint is served with."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.encoder = Encoder(revision=NANO.revision)
        self.tools = list(NANO.tools)
        self.eos, self.think, self.assistant, user = (
            _token_id(tokenizer, token) for token in (EOS, THINK_OPEN, ASSISTANT, USER)
        )
        start = self.prompt_ids(NANO.messages("?"))
        self.prefix: list[int] = start[: start.index(user) + 1]
        """What every prompt begins with, up to and including the user token."""

    def prompt_ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Prompt for the next turn of the policy."""
        prompt = self.encoder.encode(messages, tools=self.tools, effort=NANO.effort)
        return list(prompt.token_ids(self.tokenizer))

    def reply_ids(self, output: str) -> list[int]:
        """What the policy is fed after a call: the output as a message, and a new turn's opening.

        These ids do not depend on what came before, because a turn ends with the end-of-sentence
        token and nothing else contains it.
        """
        messages = [*NANO.messages("?"), *_turn(0, Call("", "", output))]
        ids = self.prompt_ids(messages)
        return ids[len(ids) - ids[::-1].index(self.eos) :]

    def question_ids(self, question: str) -> list[int]:
        """The first prompt of an episode, behind the prefix."""
        return self.prompt_ids(NANO.messages(question))[len(self.prefix) :]

    def encode(self, task: Task, trace: Trace) -> Episode:
        """A task with a policy's solution. What the policy wrote stands between the opening of a
        turn, which the prompt ends with, and the end-of-sentence token, which it samples."""
        closed = [*conversation(task.question, trace), {"role": "user", "content": "."}]
        ids = self.prompt_ids(closed)[len(self.prefix) :]
        last = len(ids) - 1 - ids[::-1].index(self.eos)
        ids = ids[: last + 1]
        sampled, inside = [], False
        for position, token in enumerate(ids):
            sampled.append(inside)
            if token == self.eos:
                inside = False
            elif token == self.think and ids[position - 1] == self.assistant:
                inside = True
        return Episode(ids, sampled)


def by_length(episodes: Sequence[Episode], groups: int) -> list[list[Episode]]:
    """Splits into groups of similar length, so that little of a padded batch is padding."""
    ordered = sorted(episodes, key=lambda episode: len(episode.token_ids))
    size = -(-len(ordered) // groups)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def batch_tensors(episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
    """Right-padded inputs and next-token targets, int64 [B, T]; unsampled targets are `IGNORED`."""
    width = max(len(episode.token_ids) for episode in episodes) - 1
    inputs = torch.zeros(len(episodes), width, dtype=torch.int64)
    targets = torch.full((len(episodes), width), IGNORED)
    for row, episode in enumerate(episodes):
        ids = torch.tensor(episode.token_ids)
        inputs[row, : len(ids) - 1] = ids[:-1]
        sampled = torch.tensor(episode.is_sampled[1:])
        targets[row, : len(ids) - 1] = torch.where(sampled, ids[1:], IGNORED)
    return inputs, targets
