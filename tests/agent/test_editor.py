"""The file editor, with its commands run by the host's shell."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from baleen.agent.editor import Editor, insert_after, numbered, replace_once
from baleen.agent.tools import CommandResult, ToolInputError


class HostCommands:
    """Runs the commands where the test runs and remembers their parts."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    async def run(
        self, argv: Sequence[str], *, part: str, stdin: bytes | None = None
    ) -> CommandResult:
        self.parts.append(part)
        done = subprocess.run(argv, input=stdin or b"", capture_output=True, check=False)
        return CommandResult(done.returncode, done.stdout, done.stderr)


async def edit(limit_chars: int = 1000, **arguments: Any) -> str:
    observation = await Editor().execute(arguments, HostCommands(), limit_chars)
    return observation.text


async def test_create_makes_folders_and_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "-odd name"
    text = await edit(command="create", path=str(path), file_text="x = 1\ny = 'é'\n")
    assert path.read_text() == "x = 1\ny = 'é'\n"
    assert text == f"[wrote {path}: 2 lines]"


async def test_view_numbers_lines_and_takes_a_range(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one\ntwo\nthree\n")
    assert await edit(command="view", path=str(path)) == "     1\tone\n     2\ttwo\n     3\tthree"
    shown = await edit(command="view", path=str(path), view_range=[2, -1])
    assert shown == "     2\ttwo\n     3\tthree"


async def test_view_lists_a_folder(tmp_path: Path) -> None:
    (tmp_path / "inside.txt").write_text("x")
    assert "inside.txt" in await edit(command="view", path=str(tmp_path))


async def test_view_of_nothing_shows_the_systems_own_words(tmp_path: Path) -> None:
    text = await edit(command="view", path=str(tmp_path / "none"))
    assert "No such file" in text
    assert text.endswith("[exit 1]")


async def test_a_long_file_is_cut_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("word " * 1000)
    assert "characters cut]" in await edit(100, command="view", path=str(tmp_path / "f"))


async def test_str_replace_keeps_mode_and_follows_links(tmp_path: Path) -> None:
    target = tmp_path / "run.sh"
    target.write_text("echo old\n")
    target.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(target)
    await edit(command="str_replace", path=str(link), old_str="old", new_str="new")
    assert target.read_text() == "echo new\n"
    assert target.stat().st_mode & 0o777 == 0o755
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run.sh"]


async def test_insert_puts_a_line_where_it_says(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("a\nb")
    await edit(command="insert", path=str(path), insert_line=2, new_str="c")
    assert path.read_text() == "a\nb\nc\n"


async def test_a_change_is_one_read_and_one_write(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("a")
    commands = HostCommands()
    arguments = {"command": "str_replace", "path": str(tmp_path / "f"), "old_str": "a"}
    await Editor().execute(arguments, commands, 100)
    assert commands.parts == ["read", "write"]
    assert (tmp_path / "f").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": "erase", "path": "x"}, "no command 'erase'"),
        ({"command": "create", "path": "x"}, "'file_text' must be a string"),
        ({"command": "view", "path": "a\x00b"}, "NUL"),
        ({"command": "create", "path": "x", "file_text": "\ud800"}, "surrogate"),
    ],
)
async def test_arguments_that_say_nothing_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    commands = HostCommands()
    with pytest.raises(ToolInputError, match=message):
        await Editor().execute(arguments, commands, 100)
    assert commands.parts == []


def test_replace_once_wants_exactly_one_occurrence() -> None:
    with pytest.raises(ToolInputError, match="occurs 2 times"):
        replace_once("aba", "a", "x")
    with pytest.raises(ToolInputError, match="occurs 0 times"):
        replace_once("aba", "c", "x")


def test_insert_after_refuses_a_line_that_is_not_there() -> None:
    with pytest.raises(ToolInputError, match="from 0 to 1"):
        insert_after("a\n", 2, "x")
    assert insert_after("a\n", 0, "x\ny\n") == "x\ny\na\n"


def test_lines_are_counted_as_grep_counts_them() -> None:
    assert numbered("a\x0cb\u2028c\nd", None) == "     1\ta\x0cb\u2028c\n     2\td"
