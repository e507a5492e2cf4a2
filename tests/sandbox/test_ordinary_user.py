"""The core suite again as an ordinary user: one mapped id, no limits, otherwise the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from baleen.sandbox.binary import box_binary
from baleen.sandbox.cgroups import NEEDED

from .conftest import DELEGATED, wait_until

UID = 54_321
TESTS = Path(__file__).parent


def _usable(python: str) -> bool:
    """Whether that user may run this interpreter and it is of this version."""
    version = "import sys; print(sys.version_info[:2])"
    done = subprocess.run(
        [*_as_user(), python, "-c", version], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() == str(sys.version_info[:2])


def _as_user() -> list[str]:
    return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env"]


def _python() -> str:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("becomes an ordinary user: needs root and setpriv")
    for python in (sys.executable, "/usr/bin/python3"):
        if _usable(python):
            return python
    pytest.skip(f"no Python {sys.version_info[:2]} that an ordinary user may run")


CHOSEN = [
    ("images/dockerfile/test_builder.py", "test"),
    ("test_run.py", "exit_code or timeout and not bomb or survives or background_children"),
    ("test_exactly_once.py", "same_key or box_survives or box_died"),
    ("test_box.py", "host_image or read_only or loopback or pids or disk"),
    ("test_lives.py", "pause or snapshot or files_and_share or owner_may_not"),
]


@pytest.mark.parametrize(("file", "chosen"), CHOSEN)
def test_the_core_suite_passes_as_an_ordinary_user(file: str, chosen: str) -> None:
    run_as_user(file, chosen)


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A control group of the user's own, with all controllers, and a leaf that he begins in."""
    root = Path("/sys/fs/cgroup")
    offered = root / "cgroup.controllers"
    if os.geteuid() != 0 or not offered.exists() or not {*NEEDED} <= {*offered.read_text().split()}:
        pytest.skip("needs root and cgroup v2 with its controllers: tests/guest/check.py has both")
    (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in NEEDED))
    group = root / f"baleen-delegated-{os.getpid()}"
    (group / "leaf").mkdir(parents=True)
    for folder in (group, group / "leaf"):
        for path in (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control"):
            os.chown(path, UID, UID)
    yield group
    wait_until(lambda: not (group / "leaf/cgroup.procs").read_text())
    for folder in (*group.glob("*/"), group):
        folder.rmdir()


def test_a_user_with_control_groups_of_his_own_has_all_limits(delegated: Path) -> None:
    run_as_user(
        "test_box.py",
        "memory or cpu_time or pids_limit",
        begin=["sh", "-c", f'echo $$ > {delegated}/leaf/cgroup.procs && exec "$@"', "sh"],
        variables={DELEGATED: "1"},
    )


def run_as_user(
    file: str, chosen: str, begin: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> None:
    """Runs tests as the ordinary user, in a home of his own; all of those chosen must pass."""
    python = _python()
    home = Path("/tmp", f"baleen-user-{os.getpid()}")
    home.mkdir(mode=0o700)
    binary = home / "baleen-box"
    shutil.copy(box_binary(), binary)
    for path in (home, binary):
        os.chown(path, UID, UID)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "BALEEN_SANDBOX_BINARY": str(binary),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONDONTWRITEBYTECODE": "1",
        **(variables or {}),
    }
    try:
        done = subprocess.run(
            [
                *begin,
                *_as_user(),
                "-i",
                *(f"{k}={v}" for k, v in environment.items()),
                python,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                f"--confcutdir={TESTS}",
                "--basetemp",
                str(home / "t"),
                "-c",
                str(TESTS.parents[1] / "pyproject.toml"),
                "-k",
                chosen,
                str(TESTS / file),
            ],
            capture_output=True,
            text=True,
            cwd=home,
            timeout=150,
            check=False,
        )
    finally:
        shutil.rmtree(home, ignore_errors=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
    assert "failed" not in done.stdout
