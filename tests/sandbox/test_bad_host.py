"""Hosts that cannot run boxes: one typed error with cause and remedy, nothing half-started left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from baleen.sandbox import CapacityError, HostError, Sandbox
from baleen.sandbox.backends import probe
from baleen.sandbox.binary import box_binary
from baleen.sandbox.cgroups import find_groups
from baleen.sandbox.home import Home
from baleen.sandbox.spec import BoxSpec

from .conftest import footprint

CREATE = "import baleen.sandbox.sync as s; s.Sandbox.create().close()"

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="changes the host's mounts in a namespace of its own: needs root"
)


def attempt(home: Path, prepare: str) -> str:
    """Tries to make a box on a host that ``prepare`` has crippled in namespaces of its own."""
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            f'{prepare} && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            CREATE,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "BALEEN_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.fixture
def fresh(host: Home, tmp_path: Path) -> Path:
    """A home where no edge runs; afterwards nothing may live there."""
    home = tmp_path / "fresh"
    before = footprint(home)
    yield home
    assert footprint(home) == before
    assert not list(home.glob("boxes/*"))
    assert not (home / "edge.sock").exists()


@needs_root
@pytest.mark.parametrize("controller", ["pids", "memory", "cpu"])
def test_a_missing_controller_is_named_with_the_remedy(fresh: Path, controller: str) -> None:
    if not Path(f"/sys/fs/cgroup/{controller}/cgroup.procs").exists():
        pytest.skip("this host has no v1 hierarchy per controller")
    error = attempt(fresh, f"umount -l /sys/fs/cgroup/{controller}")
    assert "HostError" in error
    assert f"controllers missing: {controller}" in error
    assert "BALEEN_SANDBOX_LIMITS=off" in error


@needs_root
def test_without_any_namespaces_the_refusal_names_the_missing_right(fresh: Path) -> None:
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces"
    error = attempt(fresh, f'exec unshare -U -r sh -c \'{forbid}; exec "$@"\' sh "$@"; true')
    assert "HostError" in error
    assert "namespaces" in error
    assert "run as root" in error


def test_a_missing_binary_is_named_with_the_command_that_builds_it(
    host: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BALEEN_HOME", str(tmp_path / "fresh"))
    monkeypatch.setenv("BALEEN_SANDBOX_BINARY", str(tmp_path / "none"))
    probe.cache_clear()
    container = next(backend for backend in Sandbox.backends() if backend.name == "container")
    probe.cache_clear()
    assert not container.available
    assert "native/hatch_build.py" in container.reason
    assert not (tmp_path / "fresh").exists()


async def test_another_system_than_linux_is_refused(
    host: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(HostError, match="need Linux, this is darwin"):
        await Sandbox.create()
    probe.cache_clear()


def test_a_foreign_binary_is_refused(
    host: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    impostor = tmp_path / "baleen-box"
    impostor.write_text("#!/bin/sh\necho nonsense\n")
    impostor.chmod(0o755)
    monkeypatch.setenv("BALEEN_SANDBOX_BINARY", str(impostor))
    probe.cache_clear()
    container = next(backend for backend in Sandbox.backends() if backend.name == "container")
    probe.cache_clear()
    assert not container.available
    assert "not probed" in container.reason or "nonsense" in container.reason


def fake_hierarchy(root: Path, controllers: list[str]) -> None:
    for controller in controllers:
        (root / controller).mkdir(parents=True)
        (root / controller / "cgroup.procs").touch()


def test_groups_without_a_controller_say_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hierarchy(tmp_path, ["cpu", "pids"])
    groups = find_groups("t", required=False, root=tmp_path)
    assert groups.missing == ("memory",)
    assert "without memory" in groups.description
    assert not [name for name, _ in groups.limits(BoxSpec()) if name.startswith("memory")]
    with pytest.raises(HostError, match="memory"):
        find_groups("t", required=True, root=tmp_path)


def test_a_unified_hierarchy_hands_its_controllers_down(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    groups = find_groups("t", required=False, root=tmp_path)
    assert (groups.version, groups.missing) == (2, ())
    assert (tmp_path / "t" / "cgroup.subtree_control").read_text() == "+pids"
    limits = dict(groups.limits(BoxSpec(cpu=0.5, memory_mb=64, pids=9)))
    assert limits["cpu.max"] == "50000 100000"
    assert limits["memory.max"] == str(64 << 20)
    assert limits["pids.max"] == "9"


async def test_too_little_memory_is_a_capacity_error(host: Home) -> None:
    with pytest.raises(CapacityError, match="memory"):
        await Sandbox.create(memory_mb=1 << 24)


def test_a_probe_that_something_kills_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, seen = tmp_path / "baleen-box", tmp_path / "seen"
    binary.write_text(
        f'#!/bin/sh\nif mkdir {seen}; then kill -9 $$; fi\nexec {box_binary()} "$@"\n'
    )
    binary.chmod(0o755)
    probe.cache_clear()
    monkeypatch.setenv("BALEEN_SANDBOX_BINARY", str(binary))
    try:
        assert probe()["proc"] == "ok"
        binary.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
        probe.cache_clear()
        with pytest.raises(HostError, match="probe failed: broken"):
            probe()
    finally:
        monkeypatch.undo()
        probe.cache_clear()
