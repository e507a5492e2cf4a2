"""What of a long conversation is kept word for word."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baleen.assets import nano_dir
from baleen.protocol.tokenizing import encoder_for
from baleen.server.requests.compaction import advise

from ..conftest import Serve

ENCODER = encoder_for(Tokenizer.from_file(str(nano_dir() / "tokenizer.json")))


def talk(roles: list[str]) -> list[Any]:
    return [{"role": role, "content": "some words"} for role in roles]


@given(st.lists(st.sampled_from(["user", "assistant", "tool"]), max_size=30), st.integers(1, 4_000))
def test_what_is_kept_begins_with_a_user_and_fits(roles: list[str], context: int) -> None:
    messages = talk(roles)
    advice = advise(messages, 0, context, ENCODER)
    kept = messages[advice.keep_from :]
    assert not kept or kept[0]["role"] == "user"
    assert sum(len(ENCODER.encode_text(str(message))) for message in kept) <= context // 5 + 1
    assert not advice.advised


def test_a_full_context_is_to_be_compacted() -> None:
    messages = talk(["user", "assistant"] * 5)
    assert advise(messages, 850, 1_000, ENCODER).advised
    assert not advise(messages, 849, 1_000, ENCODER).advised
    assert advise(messages, (1 << 20) - 8_191, 1 << 20, ENCODER).advised


async def test_tokenize_advises_on_whole_requests(serve: Serve) -> None:
    served = await serve("a</think>b", upstream_options={"context_tokens": 400})
    messages = talk(["user", "assistant"] * 3 + ["user"])
    found = (await served.post("/tokenize", {"messages": messages})).json()
    assert found["compaction"]["advised"] is False
    assert messages[found["compaction"]["keep_from"]]["role"] == "user"
