"""Only the encoder makes control tokens."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baleen.protocol import Encoder, tokens
from baleen.protocol.errors import TokenizerError

SPELLINGS = st.sampled_from(tokens.ALL)
HOSTILE = st.lists(
    st.one_of(SPELLINGS, st.text(max_size=6), st.sampled_from("<|｜>/▁ \n")), max_size=6
).map("".join)


def conversation(
    user: str, result: str, reasoning: str, schema: str
) -> tuple[list[Any], list[Any]]:
    call = {
        "id": "call_00_x",
        "type": "function",
        "function": {"name": "look", "arguments": '{"at": 1}'},
    }
    messages = [
        {"role": "system", "content": user},
        {"role": "user", "content": user},
        {
            "role": "assistant",
            "content": user,
            "reasoning_content": reasoning,
            "tool_calls": [call],
        },
        {"role": "tool", "tool_call_id": "call_00_x", "content": result},
    ]
    tool = {"name": "look", "description": schema, "parameters": {"type": "object"}}
    return messages, [{"type": "function", "function": tool}]


def control_ids(tokenizer: Any) -> set[int]:
    return {tokenizer.token_to_id(token) for token in tokens.ALL}


class Duck:
    """A tokenizer of another make: same methods, no JSON to rebuild it from."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner = inner

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self.inner.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def token_to_id(self, token: str) -> int | None:
        found: int | None = self.inner.token_to_id(token)
        return found


@pytest.mark.parametrize("wrap", [lambda t: t, Duck], ids=["tokenizers", "duck"])
@pytest.mark.parametrize("spelling", tokens.ALL)
def test_text_that_spells_a_special_token_stays_text(
    spelling: str, wrap: Any, tokenizer: Tokenizer
) -> None:
    encoder = Encoder()
    hostile, tools = conversation(f"a{spelling}b", f"x{spelling}", spelling, spelling)
    tame, tame_tools = conversation("a.b", "x.", ".", ".")
    controls = control_ids(tokenizer)
    ids = encoder.encode(hostile, tools=tools).token_ids(wrap(tokenizer))
    tame_ids = encoder.encode(tame, tools=tame_tools).token_ids(wrap(tokenizer))
    assert [i for i in ids if i in controls] == [i for i in tame_ids if i in controls]


@settings(max_examples=60, deadline=None)
@given(user=HOSTILE, result=HOSTILE, reasoning=HOSTILE, schema=HOSTILE)
def test_control_ids_are_exactly_the_special_segments(
    tokenizer: Tokenizer, user: str, result: str, reasoning: str, schema: str
) -> None:
    messages, tools = conversation(user, result, reasoning, schema)
    prompt = Encoder().encode(messages, tools=tools)
    ids = prompt.token_ids(tokenizer)
    controls = control_ids(tokenizer)
    special = [tokenizer.token_to_id(text) for text, is_special in prompt.segments if is_special]
    assert [i for i in ids if i in controls] == special
    assert tokenizer.decode(ids, skip_special_tokens=False) == prompt.text


def test_harmless_text_is_tokenized_as_the_tokenizer_would(tokenizer: Tokenizer) -> None:
    messages, tools = conversation("Wetter in Köln?", "sun 🐋", "why", "look at it")
    prompt = Encoder().encode(messages, tools=tools)
    whole = tokenizer.encode(prompt.text, add_special_tokens=False).ids
    assert prompt.token_ids(tokenizer) == whole


def test_special_tokens_in_the_model_vocabulary_are_out_of_reach_too(tokenizer: Tokenizer) -> None:
    # The trainer put BOS and EOS into the model's own vocabulary, not only among the added tokens.
    prompt = Encoder().encode([{"role": "user", "content": tokens.EOS}], effort="low")
    assert tokenizer.token_to_id(tokens.EOS) not in prompt.token_ids(tokenizer)


def test_a_tokenizer_that_grows_is_read_again(tokenizer: Tokenizer) -> None:
    own = Tokenizer.from_str(tokenizer.to_str())
    prompt = Encoder().encode([{"role": "user", "content": "<｜new｜>"}], effort="low")
    before = prompt.token_ids(own)
    own.add_tokens(["<｜new｜>"])
    assert prompt.token_ids(own) == before


def test_a_missing_special_token_is_named(tokenizer: Tokenizer) -> None:
    bare = Tokenizer.from_str(tokenizer.to_str().replace("<｜User｜>", "<｜Nobody｜>"))
    prompt = Encoder().encode([{"role": "user", "content": "q"}])
    with pytest.raises(TokenizerError, match="User"):
        prompt.token_ids(bare)


def test_half_a_surrogate_pair_is_a_replacement_character(tokenizer: Tokenizer) -> None:
    ids = Encoder().encode([{"role": "user", "content": "a\ud800b"}]).token_ids(tokenizer)
    assert "a\ufffdb" in tokenizer.decode(ids, skip_special_tokens=False)
