"""A small byte-level tokenizer that has every special token of the format."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from baleen.protocol import tokens

CORPUS = [
    "You have access to a set of tools to help answer the user's question.",
    '<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Köln</',
    'The quick brown fox jumps over the lazy dog, 1234567890 times: {"a": [1, 2.5, null]}',
    "<tool_result>日本語のテキスト 🐋</tool_result>\n\n",
]


def build_tokenizer() -> Tokenizer:
    """Train it; takes some milliseconds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[tokens.BOS, tokens.EOS],
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=False) for token in tokens.ALL]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return build_tokenizer()
