"""The text that a model is shown of a finished command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.agent.observation import NO_OUTPUT, TIMED_OUT, cut, render


def test_success_shows_the_output_without_its_last_newline() -> None:
    assert render(0, b"port = 8080\n", b"") == "port = 8080"


def test_success_without_output_says_so() -> None:
    assert render(0, b"", b"") == NO_OUTPUT
    assert render(0, b"\n\n", b"") == NO_OUTPUT


def test_failure_without_output_is_the_exit_code_alone() -> None:
    assert render(1, b"", b"") == "[exit 1]"


def test_failure_shows_both_streams_then_the_code() -> None:
    assert render(2, b"a\n", b"grep: x: No such file\n") == "a\ngrep: x: No such file\n[exit 2]"


def test_timeout_is_named_instead_of_its_exit_code() -> None:
    assert render(124, b"partial", b"", timed_out=True) == f"partial\n{TIMED_OUT}"


def test_a_command_that_exits_124_by_itself_did_not_time_out() -> None:
    assert render(124, b"", b"") == "[exit 124]"


def test_output_that_the_sandbox_dropped_is_mentioned() -> None:
    assert render(0, b"head", b"", truncated=True) == "head\n[more output was dropped]"


def test_inner_blank_lines_and_leading_spaces_stay() -> None:
    assert render(0, b"  a\n\n  b\n", b"") == "  a\n\n  b"


def test_bytes_that_are_not_utf8_are_shown_as_replacement_characters() -> None:
    assert render(0, b"\xff\xfeok", b"") == "\ufffd\ufffdok"


def test_a_long_text_keeps_head_and_tail_around_the_mark() -> None:
    assert cut("a" * 50 + "b" * 50, 30) == "a" * 20 + "\n[70 characters cut]\n" + "b" * 10


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="limit_chars is 0"):
        cut("abc", 0)


@given(st.text(max_size=200), st.integers(1, 100))
def test_a_cut_text_is_bounded_and_counts_what_it_lost(text: str, limit_chars: int) -> None:
    shown = cut(text, limit_chars)
    if len(text) <= limit_chars:
        assert shown == text
    else:
        mark = f"[{len(text) - limit_chars} characters cut]"
        assert mark in shown
        assert len(shown) <= limit_chars + len(mark) + 2


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 255))
def test_every_result_renders_to_some_text(stdout: bytes, stderr: bytes, exit_code: int) -> None:
    text = render(exit_code, stdout, stderr, limit_chars=100)
    assert text
    assert text.endswith(f"[exit {exit_code}]") == (exit_code != 0) or text == NO_OUTPUT
