"""An answer that has to have a form has it, whatever the sampler would like."""

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baleen.protocol import tokens
from baleen.protocol.errors import MessageError
from baleen.protocol.grammar import (
    AnswerForm,
    AnswerRules,
    CallMask,
    CallRules,
    Vocabulary,
    answer_to_ebnf,
)
from baleen.protocol.revision import Flavor
from baleen.protocol.schema import Schema
from baleen.protocol.tools import read_tools

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Köln", "Bonn"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "rain": {"type": "boolean"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
PATTERN = r"(yes|no), \d{1,3} (days?|weeks)"
TOOLS = [{"type": "function", "function": {"name": "g"}}]
CALL = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
    + tokens.EOS
)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


def accepts(mask: CallMask, tokenizer: Tokenizer, text: str) -> bool:
    for number in tokenizer.encode(text, add_special_tokens=False).ids:
        if not mask.mask().allows(number):
            return False
        assert mask.accept(number)
    return True


@pytest.mark.parametrize(
    ("form", "text", "is_good"),
    [
        (AnswerForm(SCHEMA), '{"city": "Köln", "days": 3}', True),
        (AnswerForm(SCHEMA), '{\n  "days":7,\n  "city":"Bonn",\n  "rain":true\n}', True),
        (AnswerForm(SCHEMA), '{"city": "Köln"}', False),
        (AnswerForm(SCHEMA), '{"city": "Köln", "days": 8}', False),
        (AnswerForm(SCHEMA), 'Here: {"city": "Köln", "days": 3}', False),
        (AnswerForm(SCHEMA), '{"city": "Köln", "days": 3} That is it.', False),
        (AnswerForm({"type": "object"}), '{"anything": [1, {"deep": null}]}', True),
        (AnswerForm({"type": "object"}), "[1]", False),
        (AnswerForm({"type": "string"}), '"a \\"text\\""', True),
        (AnswerForm(True), "-1.5e3", True),
        (AnswerForm(pattern=PATTERN), "yes, 12 weeks", True),
        (AnswerForm(pattern=f"^{PATTERN}$"), "no, 1 day", True),
        (AnswerForm(pattern=PATTERN), "I say yes, 12 weeks", False),
        (AnswerForm(pattern=PATTERN), "yes, 1234 weeks", False),
        (AnswerForm(pattern=r"cost: \$"), "cost: $", True),
        (AnswerForm(pattern="a|b"), "b", True),
        (AnswerForm(pattern="a|b"), "ab", False),
    ],
)
def test_an_answer_gets_through_if_it_has_the_form(
    form: AnswerForm, text: str, is_good: bool, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    for thinking in (False, True):
        mask = CallMask(AnswerRules(form), vocabulary, thinking=thinking)
        before = "Some <b> thought {</think>" if thinking else ""
        assert accepts(mask, tokenizer, f"{before}{text}{tokens.EOS}") is is_good


def test_reasoning_is_free_but_may_not_end_the_turn(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    mask = CallMask(AnswerRules(AnswerForm(SCHEMA)), vocabulary, thinking=True)
    assert accepts(mask, tokenizer, "No JSON yet, and a stray <｜DSML｜ changes nothing.")
    assert not mask.mask().allows(tokenizer.token_to_id(tokens.EOS))
    assert accepts(mask, tokenizer, '</think>{"city": "Bonn", "days": 1}')


def test_beside_tools_a_turn_answers_in_the_form_or_calls(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    rules = AnswerRules(AnswerForm(SCHEMA), CallRules(read_tools(TOOLS, Flavor.CHECKPOINT)))
    for text, is_good in (
        (CALL, True),
        ('{"city": "Bonn", "days": 1}' + tokens.EOS, True),
        ("Let me look." + CALL, False),
    ):
        mask = CallMask(rules, vocabulary, thinking=True)
        assert accepts(mask, tokenizer, f"Hm.</think>{text}") is is_good


@pytest.mark.parametrize("form", [AnswerForm(SCHEMA), AnswerForm(pattern=PATTERN)])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_the_mask_lets_a_sampler_write_has_the_form(
    form: AnswerForm, tokenizer: Tokenizer, vocabulary: Vocabulary, seed: int
) -> None:
    dice, mask = random.Random(seed), CallMask(AnswerRules(form), vocabulary, thinking=False)
    eos, ids = tokenizer.token_to_id(tokens.EOS), []
    while not ids or ids[-1] != eos:
        allowed = mask.mask()
        ids.append(dice.choice([n for n in range(tokenizer.get_vocab_size()) if allowed.allows(n)]))
        assert mask.accept(ids[-1])
    text = b"".join(map(vocabulary.table.bytes_of, ids[:-1])).decode()
    if form.pattern is None:
        assert Schema(SCHEMA).validates(json.loads(text))
    else:
        assert re.fullmatch(form.pattern, text)


def test_a_form_that_nothing_has_is_refused() -> None:
    with pytest.raises(MessageError, match="no answer conforms"):
        AnswerRules(AnswerForm(schema=False))
    for pattern in (r"(a)\1", "(?=a)b", "a**", "(?<name"):
        with pytest.raises(MessageError, match="cannot be followed"):
            AnswerRules(AnswerForm(pattern=pattern))


def test_a_pattern_is_written_for_servers_that_read_ebnf() -> None:
    text = answer_to_ebnf(AnswerRules(AnswerForm(pattern="(yes|no)!{1,2}")))
    assert text.startswith("root ::= ")
    assert "{1,2}" in text
