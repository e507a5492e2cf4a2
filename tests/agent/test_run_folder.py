"""A run folder is whole from the moment that it can be seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from baleen.agent.run_folder import RunFolder, read_json, slug
from baleen.errors import RunError

FILES = {"config.json": {"question": "é"}}


def test_the_name_is_the_time_and_the_question(tmp_path: Path) -> None:
    folder = RunFolder.create_under(tmp_path / "runs", "Which port does staging use?", FILES)
    assert re.fullmatch(r"\d{8}T\d{6}Z-which-port-does-staging-use", folder.name)
    assert read_json(folder.config) == {"question": "é"}
    assert (tmp_path / "runs" / "latest").resolve() == folder.path


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    folders = {RunFolder.create_under(tmp_path, "q", FILES).path for _ in range(5)}
    assert len(folders) == 5


def test_a_folder_that_exists_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="exists"):
        RunFolder.create(tmp_path / "mine", FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_run_is_found_by_path_name_and_as_the_latest(tmp_path: Path) -> None:
    folder = RunFolder.create_under(tmp_path, "q", FILES)
    for name in (str(folder.path), folder.name, "latest"):
        assert RunFolder.find(name, tmp_path).path == folder.path
    with pytest.raises(RunError, match="there is no run 'other'"):
        RunFolder.find("other", tmp_path)


def test_a_discarded_run_leaves_nothing(tmp_path: Path) -> None:
    RunFolder.create_under(tmp_path, "q", FILES).discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("question", "expected"),
    [("What is 4821 * 37?", "what-is-4821-37"), ("Köln?", "k-ln"), ("???", "run")],
)
def test_a_slug_is_fit_for_a_file_name(question: str, expected: str) -> None:
    assert slug(question) == expected


def test_a_long_question_makes_a_short_name() -> None:
    assert len(slug("word " * 100)) <= 40
