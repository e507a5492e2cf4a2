"""`baleen doctor` says what is here, what is missing, and whether the demo can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from baleen.assets import nano_dir
from baleen.cli.main import main
from baleen.sandbox import Sandbox


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Any:
    def call() -> tuple[dict[str, Any], int]:
        code = main(["doctor", "--json"])
        return json.loads(capsys.readouterr().out), code

    return call


def test_its_verdict_is_what_the_packages_themselves_say(report: Any) -> None:
    found, code = report()
    has_box = any(b.name == "container" and b.available for b in Sandbox.backends())
    has_model = (nano_dir() / "config.json").exists()
    assert found["able"] == (has_box and has_model)
    assert code == (0 if found["able"] else 1)


def test_what_is_missing_and_needed_has_a_remedy(
    report: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("baleen.cli.doctor._MODEL_PACKAGES", ("torch", "no_such_package"))
    found, code = report()
    (packages,) = [check for check in found["checks"] if check["name"] == "model packages"]
    assert code == 1
    assert packages["detail"] == "missing: no_such_package"
    assert "pip install" in packages["remedy"]


def test_a_missing_binary_is_named(
    report: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BALEEN_SANDBOX_BINARY", str(tmp_path / "none"))
    found, code = report()
    assert code == 1
    assert any(str(tmp_path / "none") in check["detail"] for check in found["checks"])


def test_people_get_a_line_per_check_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("the demo can")
    assert any("sandbox binary" in line for line in lines)
