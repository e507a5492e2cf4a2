"""The wheel carries all it needs: it is built, put into a bare environment, and used there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo to build the wheel"),
]


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=True, **options
    )  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        ROOT,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new environment that holds the wheel and its base dependencies."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    run(
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        ROOT / "constraints.txt",
        wheel,
    )
    return folder / "bin"


def test_it_is_tagged_for_this_platform_and_carries_binaries_and_checkpoint(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "sandbox/bin/baleen-box",
        "assets/nano/model.safetensors",
        "assets/nano/tokenizer.json",
        "assets/nano/config.json",
        "py.typed",
    ):
        assert f"baleen/{name}" in names, name
    assert wheel.stat().st_size < 10 << 20


def test_the_protocol_needs_nothing_and_the_command_line_starts(bare: Path) -> None:
    code = "import sys, baleen.protocol, baleen.sandbox; print('torch' in sys.modules)"
    assert run(bare / "python", "-c", code).stdout == "False\n"
    assert run(bare / "baleen", "--version").stdout.startswith("baleen, version ")


def test_a_sandbox_runs_without_cargo(bare: Path, tmp_path: Path) -> None:
    code = (
        "from baleen.sandbox.sync import Sandbox\n"
        "with Sandbox.create() as box: print(box.run(['echo', 'hi']).text, end='')\n"
    )
    path = f"{bare}:/usr/bin:/bin"
    environment = {**os.environ, "BALEEN_HOME": str(tmp_path), "PATH": path}
    try:
        assert run(bare / "python", "-c", code, env=environment).stdout == "hi\n"
    finally:
        end_edge(tmp_path)


def end_edge(home: Path) -> None:
    """The wheel's edge would wait for more work; a test leaves no process behind."""
    pid = int((home / "edge.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_without_torch_a_run_names_the_extra(bare: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [bare / "baleen", "run", "--json", "What is 2 + 3?"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "BALEEN_HOME": str(tmp_path)},
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "missing-extra"
    assert "pip install 'baleen[model]'" in done.stderr
