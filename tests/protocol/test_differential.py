"""Random conversations encode exactly as the published API encoder does."""

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("deepseek_recipe", reason="the oracle deepseek-recipe is not installed")


def load_fuzz() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "protocol_fuzz.py"
    spec = importlib.util.spec_from_file_location("protocol_fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ = load_fuzz()


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), revision=st.sampled_from(["0731", "0731", "v4.1"]))
def test_prompts_equal_those_of_the_published_encoder(seed: int, revision: str) -> None:
    body = FUZZ.Conversations(random.Random(seed)).body()
    outcome, their, our = FUZZ.compare(body, revision)
    assert outcome != "DIFFERENT", (their, our)
