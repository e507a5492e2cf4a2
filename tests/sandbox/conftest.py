"""Every test here uses real boxes of an edge of its own, and leaves the host as it found it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from baleen.sandbox import HostError, Sandbox
from baleen.sandbox.backends import check_offered
from baleen.sandbox.home import Home
from baleen.sandbox.spec import BoxSpec


def _why_not() -> str | None:
    try:
        check_offered(BoxSpec(), "none")
    except HostError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_not()
    for item in items:
        if reason and "host" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


class Footprint(NamedTuple):
    """What boxes could leave behind on the host."""

    mounts: int
    groups: int
    processes: int
    stage: int


def _processes(home: Path) -> int:
    """Processes whose environment or root belongs to this home: the edge, the zygote, boxes."""
    count = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            count += f"BALEEN_HOME={home}\0".encode() in environment
    return count


def footprint(home: Path) -> Footprint:
    groups = [g for c in ("cpu", "memory", "pids", "") for g in Path("/sys/fs/cgroup", c).glob("baleen-*/z*")]
    return Footprint(
        mounts=len(Path("/proc/self/mounts").read_text().splitlines()),
        groups=len(groups),
        processes=_processes(home),
        stage=len(list((home / "stage").iterdir())) if (home / "stage").exists() else 0,
    )


def edge_pid(home: Path) -> int | None:
    try:
        return int((home / "edge.pid").read_text())
    except (OSError, ValueError):
        return None


def wait_until(condition: object, timeout_s: float = 10) -> None:
    assert callable(condition)
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.01)


def kill_edge(home: Path) -> None:
    """kill -9 of the edge, waiting until it is really gone."""
    pid = edge_pid(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)  # it may be this process's child
    except ChildProcessError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except OSError:
        return False


def stop_edge(home: Path) -> None:
    pid = edge_pid(home)
    if pid is not None and _alive(pid):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not _alive(pid))


@pytest.fixture(scope="session")
def home_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def host(home_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """An own BALEEN_HOME; afterwards no box, mount, group or process of the test may be left."""
    monkeypatch.setenv("BALEEN_HOME", str(home_folder))
    before = footprint(home_folder)
    yield Home(home_folder)
    asyncio.run(_reap_all())
    stop_edge(home_folder)
    wait_until(lambda: footprint(home_folder)[:2] <= before[:2] and _processes(home_folder) == 0)
    after = footprint(home_folder)
    assert (after.mounts, after.groups, after.stage) == (before.mounts, before.groups, before.stage)


async def _reap_all() -> None:
    for box in await Sandbox.list():
        await (await Sandbox.attach(box["box"])).close()


@pytest.fixture
async def box(host: Home) -> AsyncIterator[Sandbox]:
    async with await Sandbox.create() as made:
        yield made
