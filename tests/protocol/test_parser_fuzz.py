"""Whatever a model writes, reading it holds these promises."""

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baleen.protocol import Parser, Turn, tokens
from baleen.protocol.turn import CallStatus

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "string"},
                    "n": {"type": ["integer", "null"]},
                    "o": {"type": "object", "additionalProperties": {"type": "boolean"}},
                },
            },
        },
    }
]
FRAGMENTS = [
    *("<", "</", ">", "/>", "\n", "\n\n", '"', " ", "x", "é🐋", "true", "{", "}", "1.10", "NaN"),
    *("tool_calls>", "invoke", ' name="f"', ' name="', 'name="a"', ' string="true">'),
    *(' string="false">', "parameter", "｜", "｜｜DSML｜｜", "|DSML|", "DSML", "None"),
    *("<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>", "\n</｜DSML｜invoke>\n"),
    *('<｜DSML｜invoke name="f">\n', '<｜DSML｜invoke name="g">', "</｜DSML｜parameter>\n"),
    *('<｜DSML｜parameter name="a" string="true">', '<｜DSML｜parameter name="n" string="false">'),
    *('<｜DSML｜parameter name="arguments" string="false">', '{"a": "x"}', '{"o": {"k": true}}'),
    *("<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', "[1e400]", "\\u00e9"),
    *("</thin", "<｜end▁of", "▁sentence｜>", "<div>", "</p>\n"),
    *(tokens.DSML, tokens.THINK_OPEN, tokens.THINK_CLOSE, tokens.EOS, tokens.USER),
]
IN_A_STRING = (
    '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">'
)
OUTPUTS = st.lists(st.sampled_from(FRAGMENTS), max_size=24)
OPTIONS = st.fixed_dictionaries(
    {
        "thinking": st.booleans(),
        "start": st.sampled_from([None, None, "reasoning", "content", "calls"]),
        "calls": st.sampled_from([True, True, True, False]),
        "repair": st.sampled_from(["off", "schema", "all"]),
        "tools": st.sampled_from([None, TOOLS]),
    }
)
REASONS = st.sampled_from(["stop", "length"])


def number(index: int, without_reasoning: bool) -> str:
    return f"call_{index}{'_ET' if without_reasoning else ''}"


def read(chunks: list[Any], reason: str, options: dict[str, Any]) -> tuple[Turn, list[Any]]:
    parser = Parser(mint=number, **options)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    turn = parser.finish(reason)
    return turn, events + parser.last_events


def joined(events: list[Any]) -> dict[tuple[str, int], str]:
    """Deltas by kind and call, joined; starts and ends by their fields."""
    found: dict[tuple[str, int], str] = {}
    for event in events:
        key = (type(event).__name__, getattr(event, "index", -1))
        text = getattr(event, "text", None)
        piece = text if text is not None else f"{event}"
        found[key] = found.get(key, "") + piece
    return {key: text for key, text in found.items() if text}


def check(turn: Turn, *, calls: bool, in_text: bool) -> None:
    for prose in (turn.reasoning, turn.content):
        assert not in_text or "stray-token" in turn.repairs or tokens.THINK_CLOSE not in prose
        # Dropping a stray token can leave text on both sides of it that reads as a marker.
        joined_by_drop = "stray-token" in turn.repairs
        assert not in_text or joined_by_drop or "<｜DSML｜" not in prose
    for call in turn.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
        assert call.status is not CallStatus.INCOMPLETE
    assert calls or not (turn.tool_calls or turn.incomplete_calls)
    if turn.incomplete_calls:
        assert turn.finish_reason == "length"
        assert [call.status for call in turn.incomplete_calls] == [CallStatus.INCOMPLETE]
    if turn.finish_reason == "tool_calls":
        assert turn.tool_calls


@settings(max_examples=400, deadline=None)
@given(output=OUTPUTS, options=OPTIONS, reason=REASONS, cuts=st.lists(st.integers(1, 9)))
@example(output=["<", tokens.DSML, "x"], options={"thinking": False}, reason="stop", cuts=[])
@example(output=[IN_A_STRING, "x</thin"], options={}, reason="stop", cuts=[])
@example(output=[IN_A_STRING, "<", tokens.EOS], options={}, reason="stop", cuts=[])
@example(output=[IN_A_STRING, tokens.EOS, "<｜end▁of"], options={}, reason="stop", cuts=[])
def test_any_text_is_read_alike_however_it_is_cut(
    output: list[str], options: dict[str, Any], reason: str, cuts: list[int]
) -> None:
    text = "".join(output)
    turn, events = read([text], reason, options)
    check(turn, calls=options.get("calls", True), in_text=True)
    by_piece = read(output, reason, options)
    by_char = read(list(text), reason, options)
    by_cuts = read(cut_at(text, cuts), reason, options)
    for other_turn, other_events in (by_piece, by_char, by_cuts):
        assert other_turn == turn
        assert joined(other_events) == joined(events)


def cut_at(text: str, sizes: list[int]) -> list[str]:
    pieces, position = [], 0
    for size in sizes:
        pieces.append(text[position : position + size])
        position += size
    return [*pieces, text[position:]]


@settings(max_examples=200, deadline=None)
@given(output=OUTPUTS, options=OPTIONS, reason=REASONS)
def test_any_token_ids_are_read_alike_however_they_are_cut(
    tokenizer: Tokenizer, output: list[str], options: dict[str, Any], reason: str
) -> None:
    ids = tokenizer.encode("".join(output), add_special_tokens=False).ids
    options = {**options, "tokenizer": tokenizer}
    turn, events = read([ids], reason, options)
    check(turn, calls=options["calls"], in_text=False)
    other_turn, other_events = read([[i] for i in ids], reason, options)
    assert other_turn == turn
    assert joined(other_events) == joined(events)


@settings(max_examples=200, deadline=None)
@given(output=OUTPUTS, thinking=st.booleans())
def test_text_that_only_spells_markers_survives_as_ids(
    tokenizer: Tokenizer, plain: Any, output: list[str], thinking: bool
) -> None:
    text = "".join(output).lstrip("\n")
    turn, _ = read([plain(text)], "stop", {"thinking": thinking, "tokenizer": tokenizer})
    assert (turn.reasoning if thinking else turn.content) == text
    assert turn.repairs == {}
