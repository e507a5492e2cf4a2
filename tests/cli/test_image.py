"""``baleen image``: data on stdout, talk on stderr, one JSON object where it is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from baleen.cli.main import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BALEEN_HOME", str(tmp_path / "home"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a").write_bytes(os.urandom(100_000))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["image", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_an_image_lives_from_import_to_gc(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "import", str(home / "files"), "t:1", "--at", "/srv", "--json")
    assert code == 0
    made = json.loads(out)
    assert made["name"] == "t:1"
    assert "folder" in err
    _, out, _ = said(capsys, "ls", "--json")
    (row,) = json.loads(out)
    assert row["name"] == "t:1"
    assert row["unique_bytes"] == row["bytes"] > 100_000
    assert row["shared_bytes"] == 0
    _, out, _ = said(capsys, "ls")
    assert out.splitlines()[1].split()[:3] == ["t:1", made["digest"][:12], "1"]
    _, out, _ = said(capsys, "inspect", "t:1")
    assert json.loads(out)["digest"] == made["digest"]
    assert said(capsys, "rm", "t:1")[0] == 0
    _, out, _ = said(capsys, "gc", "--dry-run", "--json")
    assert len(json.loads(out)["layers"]) == 1
    code, out, _ = said(capsys, "gc")
    assert code == 0
    assert "1 layers" in out
    assert json.loads(said(capsys, "ls", "--json")[1]) == []


def test_what_is_unknown_fails_with_the_remedy(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, "rm", "none")
    assert (code, out) == (1, "")
    assert "baleen image ls" in err
    code, out, _ = said(capsys, "inspect", "none", "--json")
    assert code == 2
    code, _, err = said(capsys, "pull", "UPPER", "--json")
    assert code == 1
    assert "not an image's name" in err
    (home / "files/Dockerfile").write_text("FROM host\nNONSENSE\n")
    code, out, err = said(capsys, "build", str(home / "files"), "--json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "image-build"
    assert "Dockerfile:2: NONSENSE" in err
