"""The real machine in small: preflight, supervised steps, reward steps, kill and resume."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from baleen.agent.observation import NO_OUTPUT
from baleen.agent.outcome import Outcome
from baleen.engine import Sampling
from baleen.model import ModelConfig, Transformer, initialize
from baleen.rl import sft
from baleen.rl.corpus import EpisodeEncoder
from baleen.rl.grpo import GRPOConfig, train_grpo
from baleen.rl.preflight import preflight
from baleen.rl.recipe import NANO_CONFIG, make_tokenizer
from baleen.rl.rollout import run_rollouts
from baleen.rl.sft import SFTConfig, train_sft
from baleen.rl.tasks import Split
from baleen.rl.tasks.lookup import lookup_task

pytestmark = pytest.mark.toy

TINY = dataclasses.replace(
    NANO_CONFIG, hidden_size=32, head_dim=16, qk_rope_head_dim=8, q_lora_rank=16, o_lora_rank=16,
    index_head_dim=8, moe_intermediate_size=32, num_hidden_layers=3, compress_ratios=(0, 4, 16),
).to_hf()  # fmt: skip
STEPS = SFTConfig(dense_steps=2, sparse_steps=1, mixed_steps=1, episodes_per_step=4, log_every=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(path)
    return path


def prepare(folder: Path, tokenizer: Path) -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sft" / "model.safetensors")


def test_preflight_passes_in_real_sandboxes() -> None:
    preflight(0)


def test_equal_seeds_train_to_equal_bits_and_a_killed_run_too(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (prepare(tmp_path / name, tokenizer) for name in ("whole", "killed"))
    train_sft(0, TINY, STEPS, whole)
    config = dataclasses.replace(STEPS, snapshot_every=2)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    save = sft.save_snapshot
    monkeypatch.setattr(sft, "save_snapshot", lambda *args: (save(*args), die()))
    with pytest.raises(KeyboardInterrupt):
        train_sft(0, TINY, config, killed)
    monkeypatch.undo()
    train_sft(0, TINY, config, killed)
    one, other = weights(whole), weights(killed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (killed / "snapshot.pt").exists()


def test_reward_steps_run_real_commands_and_write_a_policy(tokenizer: Path, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "run", tokenizer)
    initialize(Transformer(ModelConfig.from_hf(TINY)), 0).save_pretrained(folder / "sft", "fp32")
    train_grpo(0, folder / "sft", GRPOConfig(steps=1, groups=2, group_size=2), folder)
    assert (folder / "rl" / "model.safetensors").exists()
    assert "infra_errors" in (folder / "grpo.csv").read_text()


class Oracle:
    """A policy that writes the model solution, token for token, in the place of `Batch`."""

    def __init__(self, encoder: EpisodeEncoder, tasks: list) -> None:  # type: ignore[type-arg]
        self.turns = []
        for task in tasks:
            episode, turns = encoder.encode(task, task.solution), []
            for token, sampled in zip(episode.token_ids, episode.is_sampled, strict=True):
                if sampled:
                    turns[-1].append(token)
                elif not turns or turns[-1]:
                    turns.append([])
            self.turns.append([turn for turn in turns if turn])

    def generate(self, feeds: list, sampling: Sampling) -> list:  # type: ignore[type-arg]
        from baleen.engine import Completion

        return [
            Completion(turn := (turns.pop(0) if feed is not None else []), [0.0] * len(turn))
            for turns, feed in zip(self.turns, feeds, strict=True)
        ]


@pytest.mark.parametrize("tools", [True, False])
def test_the_oracle_scores_one_through_the_real_sandbox(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch, tools: bool
) -> None:
    import random

    from baleen.rl import rollout

    encoder = EpisodeEncoder(Tokenizer.from_file(str(tokenizer)))
    tasks = [lookup_task(random.Random(seed), Split.TRAIN) for seed in range(6)]
    monkeypatch.setattr(rollout, "Batch", lambda *_: Oracle(encoder, tasks))
    done = asyncio.run(run_rollouts(None, encoder, tasks, ["s"] * 6, Sampling(), "test", tools))  # type: ignore[arg-type]
    assert all(r.outcome is Outcome.STOP for r in done)
    assert all(r.reward == 1.0 for r in done)
    for r in done:
        shown = [call.output if tools else NO_OUTPUT for call in r.task.solution.calls]
        text = encoder.tokenizer.decode(r.token_ids, skip_special_tokens=False)
        assert [f"<tool_result>{output}</tool_result>" in text for output in shown] == [True] * len(
            shown
        )
        assert (r.token_ids == encoder.encode(r.task, r.task.solution).token_ids) is tools
