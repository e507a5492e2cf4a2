"""Episodes of the policy against real sandboxes, many at once, tokens kept exactly as sampled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from baleen.agent.observation import NO_OUTPUT
from baleen.agent.outcome import Outcome
from baleen.engine import Batch, Completion, Sampling
from baleen.errors import SandboxError
from baleen.model import Transformer
from baleen.protocol import parse
from baleen.rl.boxes import TaskBoxes
from baleen.rl.corpus import Episode, EpisodeEncoder
from baleen.rl.tasks import Task

MAX_TURNS = 5
MAX_TURN_TOKENS = 160


@dataclass
class Rollout:
    """One episode: what was sampled, what came of it."""

    task: Task
    token_ids: list[int]
    """Everything behind the shared prefix."""
    is_sampled: list[bool]
    logprobs: list[float] = field(default_factory=list)
    """One per sampled token, as the engine reported it."""
    outcome: Outcome | None = None
    answer: str = ""
    commands: list[str] = field(default_factory=list)
    cause: str = ""
    """What failed, for `infra_error`."""

    @property
    def reward(self) -> float:
        """1 for the right answer, 0 for all else; meaningless for an infrastructure error."""
        return float(self.outcome is Outcome.STOP and self.task.is_correct(self.answer))

    @property
    def is_valid(self) -> bool:
        """Whether the episode says something about the policy."""
        return self.outcome is not Outcome.INFRA_ERROR

    @property
    def episode(self) -> Episode:
        return Episode(self.token_ids, self.is_sampled)


async def run_rollouts(
    model: Transformer,
    encoder: EpisodeEncoder,
    tasks: Sequence[Task],
    seeds: Sequence[str],
    sampling: Sampling,
    job: str,
    tools: bool = True,
) -> list[Rollout]:
    """Lets the policy solve each task once. Without `tools` every call prints nothing."""
    rollouts = []
    for task in tasks:
        prompt = encoder.question_ids(task.question)
        rollouts.append(Rollout(task, list(prompt), [False] * len(prompt)))
    batch = Batch(model, encoder.prefix, seeds)
    feeds: list[list[int] | None] = [list(rollout.token_ids) for rollout in rollouts]
    async with TaskBoxes(tasks, job) as boxes:
        for _ in range(MAX_TURNS):
            commands = {}
            for number, completion in enumerate(batch.generate(feeds, sampling)):
                if feeds[number] is not None:
                    line = _read_turn(rollouts[number], completion, encoder)
                    if line is not None:
                        commands[number] = line
            shown: dict[int, str | SandboxError] = dict.fromkeys(commands, NO_OUTPUT)
            if tools:
                shown = await boxes.run(commands)
            feeds = _replies(rollouts, shown, encoder)
            if not any(feeds):
                break
    for rollout in rollouts:
        if rollout.outcome is None:
            rollout.outcome = Outcome.BUDGET
    return rollouts


def _read_turn(rollout: Rollout, completion: Completion, encoder: EpisodeEncoder) -> str | None:
    """Takes a turn into the record; returns the command to run, or None when all is over."""
    ids = completion.token_ids
    rollout.token_ids += ids
    rollout.is_sampled += [True] * len(ids)
    rollout.logprobs += completion.logprobs
    if ids[-1] != encoder.eos:
        rollout.outcome = Outcome.BUDGET
        return None
    turn = parse(ids[:-1], tools=encoder.tools, tokenizer=encoder.tokenizer)
    if not turn.tool_calls:
        rollout.outcome, rollout.answer = Outcome.STOP, turn.content
        return None
    command = _command(turn.tool_calls[0].arguments)
    if len(turn.tool_calls) > 1 or turn.tool_calls[0].name != "bash" or command is None:
        rollout.outcome = Outcome.MODEL_ERROR
        return None
    rollout.commands.append(command)
    return command


def _command(arguments: str) -> str | None:
    """The command of a `bash` call, if it is one that can be passed on."""
    values = json.loads(arguments)
    command = values.get("command") if isinstance(values, dict) else None
    if not isinstance(command, str) or "\0" in command:
        return None
    return command


def _replies(
    rollouts: list[Rollout], shown: dict[int, str | SandboxError], encoder: EpisodeEncoder
) -> list[list[int] | None]:
    """What each episode is fed next; None where it is over."""
    feeds: list[list[int] | None] = [None] * len(rollouts)
    for number, output in shown.items():
        rollout = rollouts[number]
        if isinstance(output, SandboxError):
            rollout.outcome, rollout.cause = Outcome.INFRA_ERROR, output.code
            continue
        reply = encoder.reply_ids(output)
        rollout.token_ids += reply
        rollout.is_sampled += [False] * len(reply)
        feeds[number] = reply
    return feeds
