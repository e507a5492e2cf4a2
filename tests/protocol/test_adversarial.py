"""Outputs that broke parsers, and what servers' own suites ask of them; the rows are data."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from baleen.protocol import Parser, Turn, parse

FOLDER = Path(__file__).parent / "data"
DATA = json.loads((FOLDER / "adversarial.json").read_text("utf-8"))
SUITES = json.loads((FOLDER / "suites.json").read_text("utf-8"))
TOOLS = [{"type": "function", "function": tool} for tool in DATA["tools"] + SUITES["tools"]]
ROWS = [pytest.param(row, id=row["row"]) for row in DATA["rows"] + SUITES["rows"]]


def text_of(row: dict[str, Any]) -> str:
    return "".join(part if isinstance(part, str) else part["text"] for part in row["input"])


def ids_of(row: dict[str, Any], tokenizer: Tokenizer, plain: Any) -> list[int]:
    """Strings hold tokens, ``{"text": ...}`` only spells them."""
    ids: list[int] = []
    for part in row["input"]:
        if isinstance(part, str):
            ids += tokenizer.encode(part, add_special_tokens=False).ids
        else:
            ids += plain(part["text"])
    return ids


def options_of(row: dict[str, Any]) -> dict[str, Any]:
    tools = TOOLS if row.get("schema", True) else None
    return {"thinking": False, "tools": tools, **row.get("options", {})}


def as_expected(turn: Turn) -> dict[str, Any]:
    found: dict[str, Any] = {
        "reasoning": turn.reasoning,
        "content": turn.content,
        "calls": [[c.name, c.arguments, c.status] for c in turn.tool_calls],
        "finish_reason": turn.finish_reason,
        "repairs": turn.repairs,
    }
    if turn.incomplete_calls:
        found["incomplete"] = [[c.name, c.arguments] for c in turn.incomplete_calls]
    return found


def fed(chunks: list[Any], row: dict[str, Any], **options: Any) -> dict[str, Any]:
    parser = Parser(**options_of(row), **options)
    for chunk in chunks:
        parser.feed(chunk)
    return as_expected(parser.finish(row.get("engine_reason", "stop")))


def test_the_table_has_all_fifty_rows() -> None:
    numbers = {int(row["row"].rstrip("abcd")) for row in DATA["rows"]}
    assert numbers == set(range(1, 51))


@pytest.mark.parametrize("row", ROWS)
def test_text_is_read_right(row: dict[str, Any]) -> None:
    expected = row.get("expected_from_text", row["expected"])
    reason = row.get("engine_reason", "stop")
    assert as_expected(parse(text_of(row), reason, **options_of(row))) == expected


@pytest.mark.parametrize("row", ROWS)
def test_token_ids_are_read_right(row: dict[str, Any], tokenizer: Tokenizer, plain: Any) -> None:
    ids = ids_of(row, tokenizer, plain)
    assert fed([ids], row, tokenizer=tokenizer) == row["expected"]
    assert fed([[i] for i in ids], row, tokenizer=tokenizer) == row["expected"]


@pytest.mark.parametrize("row", ROWS)
def test_every_chunking_is_read_alike(row: dict[str, Any]) -> None:
    text = text_of(row)
    expected = row.get("expected_from_text", row["expected"])
    assert fed(list(text), row) == expected
    for cut in range(1, len(text)):
        assert fed([text[:cut], text[cut:]], row) == expected
    dice = random.Random(row["row"])
    for _ in range(20):
        assert fed(token_like_pieces(text, dice), row) == expected


CONVERSIONS = {"string-to-json", "json-to-string", "literal", "unwrapped", "json-body"}


@pytest.mark.parametrize("row", ROWS)
def test_conversions_can_be_switched_off(row: dict[str, Any]) -> None:
    options = {**options_of(row), "repair": "off"}
    turn = parse(text_of(row), row.get("engine_reason", "stop"), **options)
    assert not CONVERSIONS & set(turn.repairs)
    counted = sum(turn.repairs.values())
    marked = [call for call in turn.tool_calls if call.status != "clean"]
    assert counted >= len(marked), "a call that was repaired, and nothing counted"


def test_some_rows_need_conversions() -> None:
    needed = {kind for param in ROWS for kind in param.values[0]["expected"]["repairs"]}
    assert needed >= CONVERSIONS


def token_like_pieces(text: str, dice: random.Random) -> list[str]:
    """Cuts of one to seven characters, as byte-pair tokens have."""
    pieces, position = [], 0
    while position < len(text):
        size = dice.choice((1, 1, 2, 3, 4, 5, 7))
        pieces.append(text[position : position + size])
        position += size
    return pieces
