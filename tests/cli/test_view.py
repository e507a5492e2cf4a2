"""`baleen view` shows what is in a folder, and refuses what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baleen.agent import records
from baleen.agent.atif_check import problems
from baleen.agent.base import ToolCall, Turn, Usage
from baleen.agent.config import RunConfig
from baleen.agent.journal import Journal
from baleen.agent.run_folder import RunFolder
from baleen.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was killed after its first command."""
    config = RunConfig("Which port?", model_name="m").to_json()
    folder = RunFolder.create_under(tmp_path / "runs", "Which port?", {"config.json": config})
    journal = Journal.create(
        folder.wal, records.Start("r", "Be brief.", "Which port?", "2026-01-31T12:00:00Z")
    )
    call = ToolCall("c", "bash", '{"command": "ls"}')
    turn = Turn("Look.", "", (call,), "stop", Usage(50, 7, 20))
    journal.write(records.TurnDone(0, turn, "2026-01-31T12:00:01Z"))
    journal.write(records.Result(0, 0, "a\x1b[31mb", "box", 0, 0.1, True, "2026-01-31T12:00:02Z"))
    journal.close()
    return folder


def test_a_killed_run_is_shown_as_far_as_it_came(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", "latest", "--runs", str(run.path.parent)]) == 0
    out = capsys.readouterr().out
    for shown in ("Which port?", "Look.", "$ ls", "7 tokens after 50, 20", "not ended"):
        assert shown in out
    assert "not run again" in out


def test_control_characters_of_an_output_are_shown_not_obeyed(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["view", str(run.path)])
    assert "a\\x1b[31mb" in capsys.readouterr().out


def test_json_is_a_valid_trajectory_that_can_be_viewed_again(
    run: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["view", "--json", str(run.path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert problems(document) == []
    (tmp_path / "elsewhere.json").write_text(json.dumps(document))
    assert main(["view", str(tmp_path / "elsewhere.json")]) == 0
    assert "$ ls" in capsys.readouterr().out


def test_a_file_that_is_no_trajectory_is_refused_with_its_first_breach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert main(["view", str(tmp_path / "x.json")]) == 1
    assert "schema_version: missing" in capsys.readouterr().err
