"""Trains the small tokenizer: byte-level BPE plus V4's special tokens.

Words, digits and punctuation never share a token, and a space never joins the word behind it. So a
word has the same tokens wherever it stands, and copying it is copying tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PATTERN = r' [a-z]+="[a-z]+"|[A-Za-z_]+|[0-9]| +|\n+|[^A-Za-z0-9_ ]+'
"""Attributes of a call's markup; words; single digits; blanks; the rest in runs."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: list[str]) -> Tokenizer:
    """A tokenizer whose first ids are `special_tokens`, in order; `texts` hold none of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, normalized=False, special=True) for t in special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
