"""What a run looks like while it happens."""

from __future__ import annotations

import pytest

from baleen.agent.base import ToolCall, Turn, Usage
from baleen.cli.live import Live, printable


def play(live: Live) -> None:
    for piece in ("Loo", "k.\n", "More."):
        live.reasoning(piece)
    live.content("8443")
    live.turn_ended(Turn("Look.\nMore.", "8443", (), "stop", Usage(5, 21, 0), 0.7, 0.2))
    call = ToolCall("c", "bash", '{"command": "ls"}')
    live.call_started(call)
    live.call_ended(call, "\n".join(f"line {number}" for number in range(30)))


def test_on_a_terminal_text_appears_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    play(Live(streaming=True))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        "Look.\nMore.\n8443\n  [21 tokens, 40 tokens/s]\n$ ls\n  line 0\n"
    )


def test_in_a_pipe_each_event_is_written_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    play(Live(streaming=False))
    assert capsys.readouterr().err.startswith("Look.\n  More.\n8443\n  [21 tokens")


def test_a_long_output_is_shown_in_part_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    play(Live(streaming=False))
    err = capsys.readouterr().err
    assert "line 19" in err
    assert "line 20" not in err
    assert "[10 more lines]" in err


def test_control_characters_are_not_obeyed() -> None:
    assert printable("a\x1b[2Jb\r\n\tc\x00é") == "a\\x1b[2Jb\\x0d\n\tc\\x00é"
