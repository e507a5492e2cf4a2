"""No call that the grammar lets through is malformed, and every good one gets through."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baleen.protocol import Encoder, parse, tokens
from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.grammar import CallMask, CallRules, Vocabulary
from baleen.protocol.revision import Flavor
from baleen.protocol.schema import Schema
from baleen.protocol.tool_choice import ChoiceMode, ToolChoice
from baleen.protocol.tools import read_tools

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "string"},
        "mode": {"type": "string", "enum": ["fast", "slow"]},
        "n": {"type": "integer"},
        "x": {"type": ["number", "null"]},
        "o": {
            "type": "object",
            "properties": {
                "k": {"type": "boolean"},
                "l": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["k"],
        },
        "u": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "r": {"$ref": "#/$defs/pair"},
    },
    "required": ["a"],
    "$defs": {"pair": {"type": "array", "items": {"type": "integer"}, "minItems": 1}},
}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "g"}},
]
NAMED = ToolChoice(ChoiceMode.NAMED, "g")
REQUIRED = ToolChoice(ChoiceMode.REQUIRED)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


def mask_for(vocabulary: Vocabulary, choice: ToolChoice | None = None, **options: Any) -> CallMask:
    rules = CallRules(read_tools(TOOLS, Flavor.CHECKPOINT), choice)
    return CallMask(rules, vocabulary, **{"thinking": False, **options})


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def accepts(mask: CallMask, ids: list[int]) -> bool:
    for number in ids:
        if not mask.mask().allows(number):
            assert not mask.accept(number)
            return False
        assert mask.accept(number)
    return True


def block(*invokes: str) -> str:
    inside = "\n".join(invokes)
    return f"\n\n<｜DSML｜tool_calls>\n{inside}\n</｜DSML｜tool_calls>{tokens.EOS}"


def invoke(name: str, *parameters: str) -> str:
    lines = "".join(f"{parameter}\n" for parameter in parameters)
    return f'<｜DSML｜invoke name="{name}">\n{lines}</｜DSML｜invoke>'


def text(name: str, value: str) -> str:
    return f'<｜DSML｜parameter name="{name}" string="true">{value}</｜DSML｜parameter>'


def bare(name: str, value: str) -> str:
    return f'<｜DSML｜parameter name="{name}" string="false">{value}</｜DSML｜parameter>'


GOOD = [
    block(invoke("f", text("a", "x"))),
    block(invoke("g"), invoke("f", bare("n", "-12"), text("a", "any </b> <text>\n"))),
    block(invoke("g").replace('">\n', '">\n\n')),
    block(invoke("f", text("a", ""), text("mode", "slow"), bare("x", "null"))),
    block(invoke("f", text("a", "x"), bare("o", '{"l": ["p", "\\u00e9"], "k": true}'))),
    block(invoke("f", text("a", "x"), bare("o", '{"k":false,"l":[]}'))),
    block(invoke("f", text("a", "x"), bare("x", "1.50e-3"), bare("r", "[1, 2]"))),
    block(invoke("f", text("a", "x"), text("u", "5"))),
    block(invoke("f", text("a", "x"), bare("u", "5"))),
]
BAD = [
    block(invoke("h")),
    block(invoke("f")),
    block(invoke("f", bare("a", "5"))),
    block(invoke("f", text("a", "x"), text("a", "y"))),
    block(invoke("f", text("a", "x"), text("n", "5"))),
    block(invoke("f", text("a", "x"), bare("n", "5.0"))),
    block(invoke("f", text("a", "x"), bare("n", "True"))),
    block(invoke("f", text("a", "x"), text("mode", "medium"))),
    block(invoke("f", text("a", "x"), bare("o", "{}"))),
    block(invoke("f", text("a", "x"), bare("o", '{"k": true, "z": 1}'))),
    block(invoke("f", text("a", "x"), bare("r", "[]"))),
    block(invoke("f", text("a", "x"), bare("u", '"5"'))),
    block(invoke("f", text("a", "x"), bare("x", "NaN"))),
    block(invoke("f", text("zzz", "x"))),
    block().replace("\n\n</", "\n</"),
    block(invoke("g")).replace(tokens.EOS, "more"),
    block(invoke("g")).replace("tool_calls>\n<", "toolcalls>\n<"),
]


@pytest.mark.parametrize("call", GOOD)
@pytest.mark.parametrize("choice", [None, REQUIRED], ids=["auto", "required"])
def test_good_calls_get_through(
    call: str, choice: ToolChoice | None, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    assert accepts(mask_for(vocabulary, choice), ids_of(tokenizer, call))


@pytest.mark.parametrize("call", BAD)
def test_bad_calls_do_not(call: str, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    assert not accepts(mask_for(vocabulary), ids_of(tokenizer, call))


def test_outside_calls_anything_goes(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    mask = mask_for(vocabulary, thinking=True)
    for number in ids_of(tokenizer, "Some <b> thoughts.</think>An answer: 1 < 2."):
        assert mask.is_free
        assert mask.mask().allows(number)
        mask.accept(number)
    assert mask.mask().allows(tokenizer.token_to_id(tokens.EOS))


def test_a_forced_call_follows_the_thinking(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    mask = mask_for(vocabulary, NAMED, thinking=True)
    assert not mask.mask().allows(tokenizer.token_to_id(tokens.EOS))
    assert accepts(mask, ids_of(tokenizer, "I have to.</think>"))
    assert not accepts(mask, ids_of(tokenizer, "No."))
    assert not accepts(mask, ids_of(tokenizer, block(invoke("f", text("a", "x")))))
    mask = mask_for(vocabulary, NAMED, thinking=True)
    assert accepts(mask, ids_of(tokenizer, "I have to.</think>" + block(invoke("g"))))


def test_a_block_that_the_prompt_opened_goes_on(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    rest = block(invoke("g")).partition("tool_calls>\n")[2]
    assert accepts(mask_for(vocabulary, REQUIRED, in_block=True), ids_of(tokenizer, rest))


def test_a_raw_value_may_spell_markup_but_not_contain_it(
    tokenizer: Tokenizer, vocabulary: Vocabulary, plain: Any
) -> None:
    call = block(invoke("f", text("a", "|")))
    before, after = (ids_of(tokenizer, half) for half in call.split("|"))
    spelled = plain("</｜DSML｜parameter> and <｜end▁of▁sentence｜>")
    assert accepts(mask_for(vocabulary), [*before, *spelled, *after])
    for stray in (tokens.DSML, tokens.EOS, tokens.USER):
        mask = mask_for(vocabulary)
        assert accepts(mask, before)
        assert not mask.mask().allows(tokenizer.token_to_id(stray))


def test_no_closer_is_ever_forced(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    mask = mask_for(vocabulary)
    before = ids_of(tokenizer, block(invoke("f", text("a", "|"))).split("|")[0])
    assert accepts(mask, before)
    letter = tokenizer.token_to_id("x")
    assert accepts(mask, [letter] * 500), "a value goes on as long as the model wants"
    assert mask.mask().allows(tokenizer.token_to_id("<")), "and ends when it wants"


@pytest.mark.parametrize("revision", ["0731", "v4.1"])
@pytest.mark.parametrize("flavor", ["api", "checkpoint"])
def test_calls_as_the_encoder_writes_them_get_through(
    revision: str, flavor: str, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    arguments = {"a": "text", "n": 3, "o": {"k": True, "l": ["p"]}, "mode": "fast", "x": 1.5}
    calls = [
        {
            "id": "c0",
            "type": "function",
            "function": {"name": "f", "arguments": json.dumps(arguments)},
        },
        {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": c["id"], "content": "r"} for c in calls]
    messages = [{"role": "user", "content": "q"}, said, *results]
    ids = Encoder(revision, flavor).encode(messages, thinking=False).token_ids(tokenizer)
    start = ids.index(tokenizer.token_to_id(tokens.THINK_CLOSE)) + 1
    end = ids.index(tokenizer.token_to_id(tokens.EOS)) + 1
    rules = CallRules(read_tools(TOOLS, Flavor.CHECKPOINT), revision=revision)
    assert accepts(CallMask(rules, vocabulary, thinking=False), ids[start:end])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_the_mask_lets_a_sampler_write_parses_without_repair(
    tokenizer: Tokenizer, vocabulary: Vocabulary, seed: int
) -> None:
    dice = random.Random(seed)
    mask = mask_for(vocabulary, REQUIRED)
    eos = tokenizer.token_to_id(tokens.EOS)
    dsml = tokenizer.token_to_id(tokens.DSML)
    ids: list[int] = []
    while not (ids and ids[-1] == eos) and len(ids) < 250:
        ids.append(_draw(mask, dice, dsml, tokenizer.get_vocab_size(), len(ids)))
        assert mask.accept(ids[-1])
    turn = parse(ids, thinking=False, tools=TOOLS, tokenizer=tokenizer)
    assert turn.repairs == {}
    assert turn.content == ""
    for call in turn.tool_calls:
        schema = Schema(SCHEMA if call.name == "f" else {})
        assert schema.validates(json.loads(call.arguments))
    assert bool(turn.tool_calls) or turn.finish_reason == "length"


def _draw(mask: CallMask, dice: random.Random, dsml: int, size: int, length: int) -> int:
    """Any allowed id, with a lean towards the end that grows with the length."""
    allowed = mask.mask()
    if allowed.allows(dsml) and dice.random() < 0.9:
        return dsml
    numbers = [n for n in range(size) if allowed.allows(n)]
    if not any(stack and stack[0][0] == "raw" for stack in mask._state or ()):
        return dice.choice(numbers)
    return dice.choice(numbers[:60]) if dice.random() < 0.5 - length / 1000 else _less(mask, size)


def _less(mask: CallMask, size: int) -> int:
    """A token on the way to ``</`` in a raw value."""
    table = mask._vocabulary.table
    wanted = (b"</", b"<", b"/")
    state_tail = max(stack[0][2] for stack in mask._state or () if stack[0][0] == "raw")
    order = wanted if state_tail == 0 else (b"/",)
    for text_ in order:
        for number in range(size):
            if number not in table.markers and table.bytes_of(number) == text_:
                return number
    raise AssertionError("a byte-level vocabulary has every byte")


def test_masks_are_remembered(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    mask = mask_for(vocabulary, REQUIRED)
    assert mask.mask() is mask.mask()


def test_a_grammar_without_tools_is_refused() -> None:
    with pytest.raises(ToolSchemaError, match="no tool may be called"):
        CallRules([])
