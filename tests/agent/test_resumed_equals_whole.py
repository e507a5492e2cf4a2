"""The real engine with random weights: a turn that was cut goes on with the same tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripted_engine import byte_tokenizer

from baleen.agent import records
from baleen.agent.base import Watch
from baleen.agent.journal import Journal
from baleen.agent.local import LocalEndpoint
from baleen.agent.prompt import NANO
from baleen.engine import Engine
from baleen.model import Transformer, initialize
from baleen.protocol.tokens import EOS
from baleen.rl.recipe import NANO_CONFIG

MAX_TOKENS = 40
START = records.Start("run-1", NANO.system, "Which port does staging use?", "2026-01-31T12:00:00Z")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    config = replace(NANO_CONFIG, eos_token_id=tokenizer.token_to_id(EOS))
    yield Engine("random", initialize(Transformer(config), 0), tokenizer)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> records.Tokens:
    """All tokens of a first turn, sampled at temperature 1 in one go."""
    journal = Journal.create(tmp_path_factory.mktemp("whole") / "wal", START)
    return tokens(engine, journal)


def tokens(engine: Engine, journal: Journal) -> records.Tokens:
    model = LocalEndpoint(engine, NANO, fingerprint="f", temperature=1.0, seed=3)
    asyncio.run(model.sample(journal, MAX_TOKENS, Watch()))
    state = journal.history.turns[0]
    journal.close()
    return records.Tokens(0, state.token_ids, state.logprobs)


@pytest.mark.parametrize("num_kept", [0, 1, 13, 39])
def test_sampled_at_temperature_1_a_resumed_turn_has_the_tokens_of_a_whole_one(
    engine: Engine, whole: records.Tokens, tmp_path: Path, num_kept: int
) -> None:
    journal = Journal.create(tmp_path / "wal", START)
    journal.write(records.Policy("random:f:0731"))
    encoded = LocalEndpoint(engine, NANO, fingerprint="f")._encode(journal)
    journal.write(records.Prompt(0, encoded.token_ids(engine.tokenizer)))
    kept = records.Tokens(0, whole.token_ids[:num_kept], whole.logprobs[:num_kept])
    journal.write(kept)
    resumed = tokens(engine, journal)
    assert resumed.token_ids == whole.token_ids
    assert resumed.logprobs == pytest.approx(whole.logprobs, abs=1e-4)
