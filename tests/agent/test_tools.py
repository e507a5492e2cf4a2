"""Calls that cannot be run are told what is wrong with them."""

from __future__ import annotations

import pytest

from baleen.agent.base import ToolCall
from baleen.agent.endpoints import toolbox_for
from baleen.agent.prompt import GENERAL, NANO
from baleen.agent.tools import ToolInputError

TOOLBOX = toolbox_for(NANO)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("python", "{}", "no tool 'python'; the tools are: bash"),
        ("bash", "{", "not JSON"),
        ("bash", '["ls"]', "not an object"),
        ("bash", "{}", "missing: command"),
        ("bash", '{"command": "ls", "shell": true}', "unknown: shell"),
    ],
)
def test_a_call_that_cannot_be_run_says_why(name: str, arguments: str, message: str) -> None:
    with pytest.raises(ToolInputError, match=message):
        TOOLBOX.resolve(ToolCall("x", name, arguments))


def test_a_malformed_call_is_never_run() -> None:
    with pytest.raises(ToolInputError, match="could not be read"):
        TOOLBOX.resolve(ToolCall("x", "bash", '{"command": "rm"}', status="malformed"))


def test_nano_has_bash_alone_and_others_an_editor_too() -> None:
    assert [tool["function"]["name"] for tool in TOOLBOX.schemas] == ["bash"]
    names = [tool["function"]["name"] for tool in toolbox_for(GENERAL).schemas]
    assert names == ["bash", "edit"]
