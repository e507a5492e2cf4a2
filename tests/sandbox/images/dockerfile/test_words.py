"""Parsing: what Docker reads as one thing is one thing here, and errors name the line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.sandbox.images.dockerfile.ignore import Ignore
from baleen.sandbox.images.dockerfile.parser import parse
from baleen.sandbox.images.dockerfile.words import WordError, expand, split
from baleen.sandbox.images.errors import BuildError

VARIABLES = {"A": "1 2", "EMPTY": "", "B": "b"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A", "1 2"),
        ("${A}x", "1 2x"),
        ("$B$A", "b1 2"),
        ("'$A'", "$A"),
        ('"$A"', "1 2"),
        (r"\$A", "$A"),
        (r'"\$A"', "$A"),
        ("${NONE:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${EMPTY-default}", ""),
        ("${A:+set}", "set"),
        ("${EMPTY:+set}", ""),
        ("${NONE:-${B}}", "b"),
        ("$NONE", ""),
        ("a$", "a$"),
        ("it's' 'x", None),
        ("${A", None),
        ("${NONE:?must be}", None),
        ("${A%%x}", None),
    ],
)
def test_variables_are_replaced_as_docker_does(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(WordError):
            expand(text, VARIABLES)
    else:
        assert expand(text, VARIABLES) == expected


def test_words_are_divided_by_unquoted_space_only() -> None:
    assert split(r"""a "b c" d\ e '' $A ${EMPTY}""", VARIABLES) == [
        "a",
        "b c",
        "d e",
        "",
        "1 2",
        "",
    ]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="'"), min_size=1)))
def test_single_quotes_keep_everything(words: list[str]) -> None:
    assert split(" ".join(f"'{word}'" for word in words), VARIABLES) == words


@given(st.text(max_size=200))
def test_no_text_crashes_the_parser(text: str) -> None:
    for whole in (text, f"FROM host\nRUN {text}", f"FROM host\n{text}"):
        with contextlib.suppress(BuildError):
            parse(whole)
    with contextlib.suppress(WordError):
        split(text, VARIABLES)


def test_lines_go_on_over_comments_and_blank_lines() -> None:
    parsed = parse("FROM host\nRUN a \\\n# comment\n\n  b \\\n  c\nENV X=1\n")
    assert [(x.name, x.rest, x.line) for x in parsed.instructions] == [
        ("FROM", "host", 1),
        ("RUN", "a   b   c", 2),
        ("ENV", "X=1", 7),
    ]


def test_the_escape_directive_changes_the_character() -> None:
    parsed = parse("# escape=`\nFROM host\nRUN dir C:\\ `\n  x\n")
    assert parsed.instructions[1].rest == "dir C:\\   x"
    assert parsed.escape == "`"


def test_here_documents_are_taken_whole() -> None:
    parsed = parse(
        "FROM host\nCOPY <<ONE <<-'TWO' /x/\na # b \\\n$A\nONE\n\t\ttabs\nTWO\nRUN cat <<<word\n"
    )
    one, two = parsed.instructions[1].heredocs
    assert (one.name, one.text, one.expand) == ("ONE", "a # b \\\n$A\n", True)
    assert (two.name, two.text, two.expand) == ("TWO", "tabs\n", False)
    assert parsed.instructions[2].heredocs == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM host\n\nRUNN x\n", r"Dockerfile:3: RUNN: unknown instruction"),
        ("RUN x\n", r"no FROM"),
        ("FROM host\nRUN <<EOF\nx\n", r"Dockerfile:2: RUN: the here-document <<EOF does not end"),
        ("FROM host\nENV\n", r"Dockerfile:2: ENV: nothing follows"),
        ("# escape=x\nFROM host\n", r"Dockerfile:1: escape=x"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("rules", "hidden", "shown"),
    [
        (["*.log"], ["a.log"], ["d/a.log", "a.txt"]),
        (["**/*.log"], ["a.log", "d/e/a.log"], ["a.logs"]),
        (["d"], ["d", "d/x", "d/e/x"], ["dd"]),
        (["d", "!d/keep"], ["d/x"], ["d/keep", "d/keep/y"]),
        (["*", "!src"], ["a", "b/c"], ["src", "src/x"]),
        (["/d/"], ["d/x"], ["e/d"]),
        (["a?c"], ["abc"], ["ac", "a/c"]),
        (["[ab].x"], ["a.x"], ["c.x"]),
        (["# comment", "", "x"], ["x"], ["# comment"]),
    ],
)
def test_patterns_hide_what_docker_hides(
    rules: list[str], hidden: list[str], shown: list[str]
) -> None:
    ignore = Ignore(rules)
    assert [path for path in hidden if not ignore.hides(path)] == []
    assert [path for path in shown if ignore.hides(path)] == []
