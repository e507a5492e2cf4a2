"""Every adapter does its work with the real package that it is for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from baleen.sandbox.home import Home

from ...peers import python_of

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["mcp", "mini", "inspect", "harbor", "swerex"])
def test_the_adapter_works_with_the_real_package(host: Home, tmp_path: Path, name: str) -> None:
    python = python_of(name)
    if python is None:
        pytest.skip(f"{name} is not there: python tests/peers.py {name}")
    source = str(Path(sys.modules["baleen"].__file__ or "").parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": source,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path),
        "MSWEA_SILENT_STARTUP": "1",
        "BALEEN_TEST_PYTHON": sys.executable,
    }
    done = subprocess.run(
        [
            python,
            "-m",
            "pytest",
            "-q",
            "--import-mode=importlib",
            "--timeout=120",
            "-p",
            "no:cacheprovider",
            "-c",
            str(HERE / "peer.ini"),
            "--basetemp",
            str(tmp_path / "peer"),
            str(HERE / f"peer_{name}.py"),
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
