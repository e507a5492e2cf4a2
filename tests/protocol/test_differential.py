"""Random conversations encode exactly as the published API encoder does."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("deepseek_recipe", reason="the oracle deepseek-recipe is not installed")
import protocol_fuzz


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), revision=st.sampled_from(["0731", "0731", "v4.1"]))
def test_prompts_equal_those_of_the_published_encoder(seed: int, revision: str) -> None:
    body = protocol_fuzz.Conversations(random.Random(seed)).body()
    outcome, their, our = protocol_fuzz.compare(body, revision)
    assert outcome != "DIFFERENT", (their, our)
