"""Masks are made of runs and skipped prefixes; trying every token on its own says the same."""

from typing import Any

import pytest
from tokenizers import Tokenizer

from baleen.protocol.grammar import CallMask, CallRules, Vocabulary
from baleen.protocol.revision import Flavor
from baleen.protocol.tools import read_tools

HEAD = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="p" string="{}">'
)
CASES: list[tuple[Any, str, str]] = [
    ({"type": "string"}, "true", 'a </ "b'),
    ({"type": "string", "maxLength": 9}, "true", "the quick"),
    ({"type": "string", "minLength": 3, "maxLength": 300}, "true", "日本語 and é"),
    ({"type": "string", "pattern": "^[a-z ]{1,12}$"}, "true", "quick brown"),
    ({"type": "string", "pattern": "^\\S+$"}, "true", "help/日本"),
    ({"type": "string", "pattern": "^([a-z]{1,4} ?){1,3}[0-9]*$"}, "true", "the fox12"),
    ({"type": "string", "format": "date-time"}, "true", "2026-01-02T03:04:05Z"),
    ({"type": "array", "items": {"type": "string", "maxLength": 5}}, "false", '["a\\n\\u00e9b", "'),
    ({"type": "object", "additionalProperties": {"maxLength": 4}}, "false", '{"key": "va'),
    ({"type": "integer", "minimum": -20, "maximum": 300}, "false", "29"),
    ({}, "false", '{"a": [1, 2.5, null, "x'),
]


def tried(rules: CallRules, vocabulary: Vocabulary, mask: CallMask, number: int) -> bool:
    """Whether a token may come, by going there byte by byte."""
    state, table = mask._state, vocabulary.table
    assert state is not None
    spelling = table.markers.get(number)
    if spelling is not None:
        return bool(rules.automaton.after_token(state, spelling))
    for byte in table.bytes_of(number):
        state = rules.automaton.after_byte(state, byte)
    return bool(state)


@pytest.mark.parametrize(("schema", "is_string", "value"), CASES)
def test_a_mask_allows_what_could_be_read(
    schema: Any, is_string: str, value: str, tokenizer: Tokenizer
) -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"p": schema}}}
    rules = CallRules(read_tools([{"type": "function", "function": tool}], Flavor.CHECKPOINT))
    vocabulary = Vocabulary(tokenizer)
    mask = CallMask(rules, vocabulary, thinking=False)
    for number in tokenizer.encode(HEAD.format(is_string), add_special_tokens=False).ids:
        assert mask.accept(number)
    for number in tokenizer.encode(value, add_special_tokens=False).ids:
        allowed = mask.mask()
        for other in range(tokenizer.get_vocab_size()):
            assert allowed.allows(other) == tried(rules, vocabulary, mask, other), (
                tokenizer.id_to_token(other)
            )
        assert mask.accept(number), tokenizer.id_to_token(number)


def test_a_mask_names_the_fewer_of_allowed_and_refused_tokens(tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"p": {"type": "string", "maxLength": 500}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    rules = CallRules(read_tools([tool], Flavor.CHECKPOINT))
    mask = CallMask(rules, Vocabulary(tokenizer), thinking=False)
    for number in tokenizer.encode(HEAD.format("true"), add_special_tokens=False).ids:
        mask.accept(number)
    assert not mask.mask().is_allowed
    assert len(mask.mask().ids) < tokenizer.get_vocab_size() / 5
