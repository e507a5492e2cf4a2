"""The exported grammar and the masks admit the same calls, and what it admits parses clean."""

import importlib
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

import protocol_wheels
import pytest
from by_path import load_module
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.protocol import parse, tokens
from baleen.protocol.grammar import CallRules, to_ebnf, to_structural_tag
from baleen.protocol.grammar.automaton import COUNT, LITERAL, MANY, ONE, RAW, TOKEN, State
from baleen.protocol.plugins.structural import structural_tag
from baleen.protocol.revision import Flavor
from baleen.protocol.schema import Schema
from baleen.protocol.tools import read_tools

CALLS = load_module("tests/protocol/test_grammar.py")
TOOLS, NAMED, REQUIRED = CALLS.TOOLS, CALLS.NAMED, CALLS.REQUIRED

MORE_TOOLS = [
    *TOOLS,
    {
        "type": "function",
        "function": {
            "name": "h",
            "parameters": {
                "type": "object",
                "properties": {
                    "ö": {"type": "string", "maxLength": 3},
                    "n": {"type": "number", "minimum": 0.5, "exclusiveMaximum": 20},
                    "p": {"type": "string", "pattern": "^[a-f]{2,4}-?é$"},
                },
                "additionalProperties": {"type": "integer"},
                "maxProperties": 3,
            },
        },
    },
]


@pytest.fixture(scope="module")
def xgrammar() -> Iterator[Any]:
    pytest.importorskip("torch", reason="xgrammar imports torch")
    try:
        folders = [str(protocol_wheels.folder_of(name)) for name in ("xgrammar", "apache-tvm-ffi")]
    except protocol_wheels.WheelUnavailable as error:
        pytest.skip(str(error))
    sys.path[:0] = folders
    importlib.import_module("tvm_ffi")
    yield importlib.import_module("xgrammar")
    for folder in folders:
        sys.path.remove(folder)


def rules_for(tools: Any = None, choice: Any = REQUIRED, **options: Any) -> CallRules:
    return CallRules(read_tools(tools or MORE_TOOLS, Flavor.CHECKPOINT), choice, **options)


def compiled(xgrammar: Any, rules: CallRules, kind: str, **where: Any) -> Any:
    if kind == "EBNF":
        return xgrammar.Grammar.from_ebnf(to_ebnf(rules, **where).text)
    return xgrammar.Grammar.from_structural_tag(to_structural_tag(rules, **where).text)


def admits(xgrammar: Any, grammar: Any, text: str) -> bool:
    found: bool = xgrammar.testing._is_grammar_accept_string(grammar, text)
    return found


def masks_admit(rules: CallRules, text: str) -> bool:
    """Whether our automaton takes a forced block, every spelling of the token being the token."""
    state = rules.forced_start
    for place, part in enumerate(text.split(tokens.DSML)):
        if place:
            state = rules.automaton.after_token(state, tokens.DSML)
        for byte in part.encode():
            state = rules.automaton.after_byte(state, byte)
    return () in rules.automaton.after_token(state, tokens.EOS)


def walk(rules: CallRules, dice: random.Random) -> str | None:
    """A random block that the masks let through; None if it does not come to an end."""
    state, out = rules.forced_start, bytearray()
    for _ in range(900):
        if rules.automaton.after_token(state, tokens.EOS):
            return out.decode("utf-8", "strict")
        after = rules.automaton.after_token(state, tokens.DSML)
        if after:
            out += tokens.DSML.encode()
            state = after
            continue
        byte = dice.choice(_bytes_of(state, dice))
        out.append(byte)
        state = rules.automaton.after_byte(state, byte)
    return None


def _bytes_of(state: State, dice: random.Random) -> list[int]:
    """ASCII bytes that may come next, closers more often than chance would have them."""
    found: set[int] = set()
    for stack in state:
        kind, given_bytes, *_ = stack[0] if stack else (TOKEN, "")
        if kind == LITERAL:
            found.add(given_bytes[0])
        elif kind in (ONE, MANY) or (kind == COUNT and stack[0][3] != 0):
            found |= given_bytes
        elif kind == RAW:
            found |= {*b'<</ab{"}'}
    closers = [byte for byte in found if byte in b'</"]}']
    return closers if closers and dice.random() < 0.6 else sorted(found)


def mutated(text: str, dice: random.Random) -> str:
    """The text with a few pieces removed, doubled or replaced."""
    pieces = list(text)
    for _ in range(dice.randint(1, 2)):
        place = dice.randrange(len(pieces))
        pieces[place] = dice.choice(["", pieces[place] * 2, *'xé0-"<>/\n ,{}['])
    return "".join(pieces)


@pytest.mark.timeout(2400)  # the first run on a machine fetches xgrammar
@pytest.mark.parametrize("kind", ["EBNF", "structural tag"])
def test_good_calls_get_through_and_bad_ones_do_not(xgrammar: Any, kind: str) -> None:
    grammar = compiled(xgrammar, rules_for(TOOLS), kind, thinking=False)
    assert [
        c for c in CALLS.GOOD if not admits(xgrammar, grammar, c.removesuffix(tokens.EOS))
    ] == []
    assert [c for c in CALLS.BAD if admits(xgrammar, grammar, c.replace(tokens.EOS, ""))] == []


@pytest.mark.parametrize("kind", ["EBNF", "structural tag"])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**48))
def test_masks_and_export_admit_the_same(xgrammar: Any, kind: str, seed: int) -> None:
    dice = random.Random(seed)
    rules = rules_for()
    grammar = compiled(xgrammar, rules, kind, thinking=False)
    for _ in range(3):
        text = walk(rules, dice)
        if text is None:
            continue
        assert admits(xgrammar, grammar, text), text
        for _ in range(10):
            other = mutated(text, dice)
            assert admits(xgrammar, grammar, other) == masks_admit(rules, other), other


@pytest.fixture(scope="module")
def compiler(xgrammar: Any) -> Any:
    """A compiler for a vocabulary of characters and of pieces of the markup."""
    pieces = [*map(chr, range(0x20, 0x7F)), "\n", "é", "</", "<", tokens.DSML, "｜", 'name="f">\n']
    pieces += ["</think>", "\n\n<", "tool_calls>\n", "invoke", "parameter", ' string="true">', "ö"]
    vocabulary = [*(piece.encode() for piece in pieces), b"</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[len(pieces)])
    return xgrammar.GrammarCompiler(info), pieces


MODES: list[tuple[Any, dict[str, bool], dict[str, Any]]] = [
    (None, {"thinking": False}, {"thinking": False}),
    (None, {"thinking": True}, {"thinking": True}),
    (REQUIRED, {"thinking": False}, {"thinking": False}),
    (REQUIRED, {"thinking": True}, {"thinking": True}),
    (NAMED, {"thinking": True}, {"thinking": True}),
    (REQUIRED, {"thinking": False, "in_block": True}, {"thinking": False, "start": "calls"}),
]


@pytest.mark.parametrize(("choice", "where", "options"), MODES)
@pytest.mark.parametrize("kind", ["EBNF", "structural tag"])
def test_whatever_the_export_admits_parses_clean(
    xgrammar: Any, compiler: Any, kind: str, choice: Any, where: Any, options: Any
) -> None:
    rules = rules_for(choice=choice)
    compile_with, pieces = compiler
    grammar = compile_with.compile_grammar(compiled(xgrammar, rules, kind, **where))
    bitmask = xgrammar.allocate_token_bitmask(1, len(pieces) + 1)
    num_called = 0
    functions = [tool["function"] for tool in MORE_TOOLS]
    schemas = {f["name"]: Schema(f.get("parameters", {})) for f in functions}
    for seed in range(80):
        if num_called > 1 and seed > 3:
            break
        dice = random.Random(f"{kind}{choice}{where}{seed}")
        opening = ["h", "m", "</think>"] if where["thinking"] else []
        opening += [] if choice or seed % 4 == 0 else ["a", "\n\n<", tokens.DSML, "tool_calls>\n"]
        text = _sampled(xgrammar, grammar, bitmask, pieces, dice, opening)
        if text is None:
            continue
        turn = parse(text, tools=MORE_TOOLS, **options)
        # A tag of xgrammar's cannot keep the bare token out of prose; it is dropped and counted.
        harmless = {"stray-token"} if kind == "structural tag" and choice is None else set()
        assert turn.repairs.keys() <= harmless, text
        assert not turn.incomplete_calls
        assert not choice or turn.tool_calls
        num_called += bool(turn.tool_calls)
        for call in turn.tool_calls:
            assert call.status == "clean"
            assert schemas[call.name].validates(json.loads(call.arguments)), call.arguments
    assert num_called


def _sampled(
    xgrammar: Any,
    grammar: Any,
    bitmask: Any,
    pieces: list[str],
    dice: random.Random,
    opening: list[str],
) -> str | None:
    """A random output; markup and the end come more often than chance would have them."""
    matcher = xgrammar.GrammarMatcher(grammar)
    stop, out = len(pieces), "".join(opening)
    for piece in opening:
        assert matcher.accept_token(pieces.index(piece))
    markup = [n for n, p in enumerate(pieces) if len(p) > 1 or p in '<>"]}/']
    for _ in range(400):
        matcher.fill_next_token_bitmask(bitmask)
        words = [int(word) & 0xFFFFFFFF for word in bitmask[0]]
        allowed = [n for n in range(stop + 1) if words[n // 32] >> (n % 32) & 1]
        leaning = [n for n in allowed if n in markup]
        if stop in allowed and dice.random() < 0.1:
            return out
        chosen = dice.choice(leaning if leaning and dice.random() < 0.7 else allowed)
        if chosen == stop:
            return out
        assert matcher.accept_token(chosen)
        out += pieces[chosen]
    return None


def test_many_parameters_are_exported_in_declared_order(xgrammar: Any) -> None:
    properties = {f"p{n:02d}": {"type": "boolean"} for n in range(24)}
    parameters = {"type": "object", "properties": properties, "required": ["p03", "p20"]}
    tool = {"type": "function", "function": {"name": "wide", "parameters": parameters}}
    rules = rules_for([tool])
    found = to_ebnf(rules, thinking=False)
    assert found.in_declared_order
    assert not to_ebnf(rules_for(), thinking=False).in_declared_order
    grammar = xgrammar.Grammar.from_ebnf(found.text)

    def called(*names: str) -> str:
        given_ = "".join(
            f'<｜DSML｜parameter name="{name}" string="false">true</｜DSML｜parameter>\n'
            for name in names
        )
        invoke = f'<｜DSML｜invoke name="wide">\n{given_}</｜DSML｜invoke>'
        return f"\n\n<｜DSML｜tool_calls>\n{invoke}\n</｜DSML｜tool_calls>"

    for names in (("p03", "p20"), ("p00", "p03", "p07", "p20", "p23")):
        assert admits(xgrammar, grammar, called(*names))
        assert masks_admit(rules, called(*names))
    for names in (("p20", "p03"), ("p03",), ("p03", "p03", "p20"), ()):
        assert not admits(xgrammar, grammar, called(*names))
    assert masks_admit(rules, called("p20", "p03"))


def test_what_a_schema_demands_in_vain_is_said() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 5}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    expected = ("f.parameters.a: multipleOf",)
    assert to_ebnf(rules_for([tool]), thinking=False).unenforced == expected
    assert to_structural_tag(rules_for([tool]), thinking=True).unenforced == expected


@pytest.mark.parametrize("thinking", [False, True])
def test_only_one_call_may_be_asked_for(xgrammar: Any, thinking: bool) -> None:
    two = next(call for call in CALLS.GOOD if call.count("<｜DSML｜invoke") == 2)
    prefix = "hm</think>" if thinking else ""
    for parallel in (True, False):
        rules = rules_for(TOOLS, parallel=parallel)
        for kind in ("EBNF", "structural tag"):
            grammar = compiled(xgrammar, rules, kind, thinking=thinking)
            text = prefix + two.removesuffix(tokens.EOS)
            assert admits(xgrammar, grammar, text) == parallel


@pytest.mark.parametrize("choice", ["auto", "required", {"function": {"name": "f"}}])
def test_the_plugins_hand_out_what_xgrammar_compiles(xgrammar: Any, choice: Any) -> None:
    tag = structural_tag(TOOLS, choice, thinking=False)
    assert isinstance(tag, xgrammar.StructuralTag)
    xgrammar.Grammar.from_structural_tag(tag)
    assert structural_tag(TOOLS, "none", thinking=False) is None
    assert structural_tag(None, "auto", thinking=False) is None
