"""Well-formed turns, in text and in ids, cut anywhere."""

import re
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baleen.errors import UsageError
from baleen.protocol import Encoder, Parser, Turn, parse, tokens
from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.events import ArgumentsDelta, CallEnd, CallStart, ContentDelta, ReasoningDelta

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string"}, "n": {"type": "integer"}},
            },
        },
    }
]
CANONICAL = (
    "I look.</think>Looking.\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="look">\n'
    '<｜DSML｜parameter name="at" string="true">a "b"\n<c> \\ é 🐋</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="n" string="false">2</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    '<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls>"
)


def comparable(turn: Turn) -> Any:
    """A turn without its random ids."""
    calls = [(c.name, c.arguments, c.status) for c in turn.tool_calls]
    cut = [(c.name, c.arguments) for c in turn.incomplete_calls]
    return turn.reasoning, turn.content, calls, cut, turn.finish_reason, turn.repairs


def fed(chunks: list[Any], finish: str = "stop", **options: Any) -> Turn:
    parser = Parser(**options)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    turn = parser.finish(finish)
    events += parser.last_events
    check_events_add_up(events, turn)
    return turn


def check_events_add_up(events: list[Any], turn: Turn) -> None:
    def joined(kind: Any) -> str:
        return "".join(event.text for event in events if isinstance(event, kind))

    assert joined(ReasoningDelta) == turn.reasoning
    assert joined(ContentDelta) == turn.content
    started = [(e.id, e.name) for e in events if isinstance(e, CallStart)]
    assert started == [(c.id, c.name) for c in [*turn.tool_calls, *turn.incomplete_calls]]
    for index, call in enumerate([*turn.tool_calls, *turn.incomplete_calls]):
        deltas = [e.text for e in events if isinstance(e, ArgumentsDelta) and e.index == index]
        assert "".join(deltas) == call.arguments
    ended = [(e.index, e.status) for e in events if isinstance(e, CallEnd)]
    assert ended == [(i, c.status) for i, c in enumerate(turn.tool_calls)]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_a_canonical_turn_is_read_without_repair() -> None:
    turn = parse(CANONICAL + tokens.EOS, tools=TOOLS)
    assert turn.reasoning == "I look."
    assert turn.content == "Looking."
    assert [(c.name, c.arguments, c.status) for c in turn.tool_calls] == [
        ("look", '{"at": "a \\"b\\"\\n<c> \\\\ é 🐋", "n": 2}', "clean"),
        ("now", "{}", "clean"),
    ]
    assert turn.finish_reason == "tool_calls"
    assert turn.repairs == {}


def test_every_split_point_gives_the_same_turn() -> None:
    whole = comparable(parse(CANONICAL, tools=TOOLS))
    for cut in range(len(CANONICAL) + 1):
        assert comparable(fed([CANONICAL[:cut], CANONICAL[cut:]], tools=TOOLS)) == whole
    assert comparable(fed(list(CANONICAL), tools=TOOLS)) == whole


def test_token_ids_give_the_same_turn(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, CANONICAL + tokens.EOS)
    whole = comparable(parse(CANONICAL, tools=TOOLS))
    assert comparable(fed([ids], tools=TOOLS, tokenizer=tokenizer)) == whole
    assert comparable(fed([[i] for i in ids], tools=TOOLS, tokenizer=tokenizer)) == whole


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(0, len(CANONICAL)), max_size=12))
def test_any_chunking_gives_the_same_turn(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(CANONICAL)]
    chunks = [CANONICAL[a:b] for a, b in pairwise(bounds)]
    assert comparable(fed(chunks, tools=TOOLS)) == comparable(parse(CANONICAL, tools=TOOLS))


@pytest.mark.parametrize(
    ("options", "output", "reasoning", "content"),
    [
        ({}, "\n\nhm\n\n</think>\n\nyes\n", "hm", "yes\n"),
        ({"thinking": False}, "\nyes\n\nno", "", "yes\n\nno"),
        ({"start": "reasoning"}, "\nhm</think>yes", "\nhm", "yes"),
        ({"start": "content"}, "\nyes", "", "\nyes"),
        ({}, "<think>hm</think>yes", "hm", "yes"),
        ({}, "hm", "hm", ""),
        ({"thinking": False}, "2 <", "", "2 <"),
        ({"thinking": False}, "a\n\n", "", "a\n\n"),
        ({"thinking": False}, "a </ b </thin", "", "a </ b </thin"),
    ],
)
def test_prose_is_split_at_the_think_tag(
    options: dict[str, Any], output: str, reasoning: str, content: str
) -> None:
    turn = fed(list(output), **options)
    assert (turn.reasoning, turn.content) == (reasoning, content)
    assert comparable(turn) == comparable(parse(output, **options))


DOUBLED = (
    "Hi.\n\n<｜｜DSML｜｜tool_calls>\n"
    '<｜｜DSML｜｜invoke name="look">\n'
    '<｜｜DSML｜｜parameter name="at" string="true">x <｜ y</｜｜DSML｜｜parameter>\n'
    "</｜｜DSML｜｜invoke>\n"
    "</｜｜DSML｜｜tool_calls>"
)


def test_bars_too_many_around_the_token_are_recovered_on_request(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, DOUBLED)
    assert tokenizer.token_to_id(tokens.DSML) in ids, "the token itself stands in the markup"
    for chunks in ([ids], [[i] for i in ids]):
        turn = fed(chunks, tools=TOOLS, tokenizer=tokenizer, repair="all", thinking=False)
        assert turn.content == "Hi."
        assert [(c.name, c.arguments) for c in turn.tool_calls] == [("look", '{"at": "x <｜ y"}')]
        assert turn.repairs["foreign-markup"] == 1
        plain = fed(chunks, tools=TOOLS, tokenizer=tokenizer, thinking=False)
        assert plain.tool_calls == []
        assert tokens.DSML not in plain.content


def test_one_bar_too_many_behind_the_token_is_a_repair(tokenizer: Tokenizer) -> None:
    output = CANONICAL.replace("DSML｜", "DSML｜｜")
    ids = ids_of(tokenizer, output)
    for turn in (
        parse(output, tools=TOOLS),
        fed([[i] for i in ids], tools=TOOLS, tokenizer=tokenizer),
    ):
        assert [call.name for call in turn.tool_calls] == ["look", "now"]
        assert turn.repairs["tag"] == 8, "openers and closers of calls and parameters"


def test_a_turn_without_an_answer_says_so() -> None:
    assert parse("only thoughts").no_answer
    assert not parse("thoughts</think>answer").no_answer


def test_a_call_cut_off_is_never_among_the_calls() -> None:
    for cut in range(CANONICAL.index("invoke name"), CANONICAL.index("</｜DSML｜invoke>\n<")):
        turn = parse(CANONICAL[:cut], "length", tools=TOOLS)
        assert turn.tool_calls == []
        assert turn.finish_reason == "length"


def test_a_prompt_hands_out_the_parser_of_its_answer() -> None:
    messages = [{"role": "user", "content": "q"}]
    encoder = Encoder()
    assert encoder.encode(messages).parser().feed("x") == [ReasoningDelta("x")]
    chat = encoder.encode(messages, thinking=False)
    assert chat.parser().feed("x") == [ContentDelta("x")]
    forced = encoder.encode(messages, tools=TOOLS, thinking=False, tool_choice="required")
    assert forced.text.endswith("</think>\n\n<｜DSML｜tool_calls>\n")
    parser = forced.parser()
    parser.feed(CANONICAL.partition("tool_calls>\n")[2])
    assert [call.name for call in parser.finish().tool_calls] == ["look", "now"]


def test_ids_are_ordered_and_tell_whether_the_turn_reasoned() -> None:
    thought = [call.id for call in parse(CANONICAL).tool_calls]
    blunt = [
        call.id for call in parse(CANONICAL.partition("</think>")[2], thinking=False).tool_calls
    ]
    assert [len(i) for i in thought] == [32, 32]
    assert [i[:8] for i in thought] == ["call_00_", "call_01_"]
    assert [len(i) for i in blunt] == [35, 35]
    assert all(i[8:11] == "ET_" for i in blunt)


def test_ids_sort_like_their_calls_and_cannot_be_guessed() -> None:
    many = CANONICAL.replace("</｜DSML｜tool_calls>", '<｜DSML｜invoke name="now"/>\n' * 30)
    ids = [call.id for call in parse(many).tool_calls]
    assert ids == sorted(ids)
    assert len(ids) == len(set(ids)) == 32
    for place, call_id in enumerate(ids):
        assert re.fullmatch(rf"call_{place:02d}_[A-Za-z0-9]{{20}}[0-9]{{4}}", call_id)
    assert not {i[8:] for i in ids} & {call.id[8:] for call in parse(many).tool_calls}


HEAD = CANONICAL[: CANONICAL.index('a "b"')]


def test_a_string_begins_with_its_first_piece() -> None:
    for first in ("a", "<b", "日", "\na", "</b"):
        parser = Parser(tools=TOOLS)
        parser.feed(HEAD)
        deltas = [event for event in parser.feed(first) if isinstance(event, ArgumentsDelta)]
        assert deltas, first


@pytest.mark.parametrize("body", ["plain words ", '<div a="b"><p>\n</p></div>\n', "｜DSML｜ <｜ "])
def test_a_piece_of_a_long_argument_costs_what_one_of_a_short_one_does(body: str) -> None:
    def cost_s(size: int) -> float:
        text = HEAD + body * (size // len(body))
        pieces = [text[i : i + 4] for i in range(0, len(text), 4)]
        times = []
        for _ in range(3):
            parser = Parser(tools=TOOLS)
            start = time.process_time()
            for piece in pieces:
                parser.feed(piece)
            times.append(time.process_time() - start)
        return min(times) / len(pieces)

    # Were it quadratic, it would cost some fifty times as much.
    assert cost_s(400_000) < 4 * cost_s(8_000)


def test_wrong_use_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError):
        Parser().feed([1, 2])
    with pytest.raises(UsageError):
        Parser(tokenizer=tokenizer).feed("text")
    with pytest.raises(UsageError, match="schema"):
        Parser(repair="some")
    parser = Parser()
    parser.finish()
    with pytest.raises(UsageError):
        parser.feed("more")


@pytest.mark.parametrize(
    ("tools", "place"),
    [
        ("f", "str"),
        ({"name": "f"}, "dict"),
        ([{"name": "f", "parameters": {}}], "tools[0].function"),
        (["f"], "tools[0]"),
        ([{"type": "function", "function": {"name": 3}}], "tools[0].function.name"),
    ],
)
def test_tools_that_could_type_nothing_are_refused(tools: Any, place: str) -> None:
    with pytest.raises(ToolSchemaError) as refused:
        Parser(tools)
    assert place in refused.value.message
