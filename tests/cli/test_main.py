"""The command line: wrong usage is named, help is fast, data and talk are kept apart."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from baleen.cli.main import VERBS, cli, main


def exit_code_and_output(
    capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_of_the_table_loads_under_its_name(name: str) -> None:
    verb = VERBS[name]
    command = getattr(importlib.import_module(verb.module), verb.attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for member in group.list_commands(context):
        command = group.get_command(context, member)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {member}")
        else:
            yield f"{name} {member}", command


def examples() -> Iterator[tuple[str, click.Command]]:
    for name, command in commands(cli, "baleen"):
        for line in (command.help or "").splitlines():
            if name in line and line.startswith(" "):
                yield line[line.index(name) + len(name) :].partition(" > ")[0], command


@pytest.mark.parametrize(("arguments", "command"), list(examples()))
def test_an_example_of_the_help_is_a_valid_command_line(
    arguments: str, command: click.Command
) -> None:
    command.make_context(command.name, shlex.split(arguments, comments=True))


@pytest.mark.parametrize("verb", ["run", "serve", "view", "replay", "mcp", "cost", "convert"])
def test_verbs_with_arguments_show_examples(verb: str) -> None:
    assert sum(command.name == verb for _, command in examples()) >= 2


def test_help_lists_the_verbs_without_importing_them() -> None:
    program = (
        "import sys; from baleen.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'httpx', 'msgpack', 'rich', 'asyncio', 'baleen.agent'};"
        "found = heavy & set(sys.modules); assert not found, found; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in VERBS)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["rnu"], "run"),
        (["--versoin"], "--version"),
        (["run", "--modle", "x", "q"], "--model"),
        (["view", "--jsn", "x"], "--json"),
        (["run", "-3 + 4 = ?"], "-- '-3 + 4 = ?'"),
    ],
)
def test_a_wrong_name_exits_2_with_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    code, out, err = exit_code_and_output(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert hint in err


def test_a_wrong_key_in_a_file_exits_2_with_the_nearest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text('modell = "nano"\n')
    code, out, err = exit_code_and_output(capsys, "run", "-c", str(tmp_path / "run.toml"), "q")
    assert code == 2
    assert out == ""
    assert "'modell'" in err
    assert "did you mean model?" in err


def resolved(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    code, out, _ = exit_code_and_output(capsys, "run", "--dry-run", *arguments)
    assert code == 0
    config: dict[str, object] = json.loads(out)
    return config


def test_flags_beat_environment_beats_later_file_beats_earlier_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text('seed = 1\nimage = "first"\ntemperature = 0.1\nmax_turns = 11\n')
    second.write_text('image = "second"\ntemperature = 0.2\nmax_turns = 22\n')
    monkeypatch.setenv("BALEEN_RUN_TEMPERATURE", "0.3")
    monkeypatch.setenv("BALEEN_RUN_MAX_TURNS", "33")
    config = resolved(capsys, "-c", str(first), "-c", str(second), "--max-turns", "44", "q")
    assert config["seed"] == 1
    assert config["image"] == "second"
    assert config["temperature"] == 0.3
    assert config["limits"]["max_turns"] == 44  # type: ignore[index]


def test_a_name_without_a_model_means_the_endpoint_of_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert resolved(capsys, "--model-name", "m", "q")["model"] == "http://127.0.0.1:1/v1"
    assert resolved(capsys, "q")["model"] == "nano"


def test_a_mount_is_read_only_unless_it_says_rw(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = resolved(capsys, "--mount", str(tmp_path), "q")
    assert (config["mount"], config["mount_mode"]) == (str(tmp_path), "ro")
    config = resolved(capsys, "--mount", f"{tmp_path}:rw", "q")
    assert (config["mount"], config["mount_mode"]) == (str(tmp_path), "rw")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "there is no question"),
        (["run", " "], "the question is empty"),
        (["run", "--mount", "nowhere", "q"], "is not a folder"),
        (["run", "--max-turns", "0", "q"], "max_turns is 0"),
        (["run", "--temperature", "-1", "q"], "temperature is -1"),
        (["run", "--model-name", "m", "q"], "set OPENAI_BASE_URL"),
        (["run", "--resume", "x", "q"], "takes no question"),
        (["run", "--max-turns", "many", "q"], "not a valid integer"),
    ],
)
def test_unusable_arguments_exit_2_and_say_why(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    code, out, err = exit_code_and_output(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_json_errors_are_data_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = exit_code_and_output(
        capsys, "run", "--json", "--runs", str(tmp_path), "--resume", "nothing"
    )
    assert code == 1
    assert json.loads(out)["error"]["code"] == "run"
    assert "there is no run 'nothing'" in err


@pytest.mark.usefixtures("home")
def test_the_exit_code_of_a_sandboxed_command_passes_through() -> None:
    command = [sys.executable, "-m", "baleen.cli.main", "sandbox", "run", "sh", "-c", "exit 5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (5, ""), done.stderr
