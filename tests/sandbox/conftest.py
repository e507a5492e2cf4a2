"""Every test here uses real boxes of an edge of its own, and leaves the host as it found it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
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

    mounts: list[str]
    groups: list[str]
    processes: list[str]
    staged: list[str]


def _processes(home: Path) -> list[str]:
    """Processes whose environment names this home: the edge, the zygote, everything in boxes."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if f"BALEEN_HOME={home}\0".encode() in (folder / "environ").read_bytes():
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()!r}")
    return found


def footprint(home: Path) -> Footprint:
    groups = Path("/sys/fs/cgroup").rglob(f"{Home(home).group_name}/z*")
    return Footprint(
        mounts=Path("/proc/self/mounts").read_text().splitlines(),
        groups=[str(group) for group in groups],
        processes=_processes(home),
        staged=[str(path) for path in (home / "stage").glob("*")],
    )


def edge_pid(home: Path) -> int | None:
    try:
        return int((home / "edge.pid").read_text())
    except (OSError, ValueError):
        return None


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.01)


def kill_edge(home: Path) -> None:
    """kill -9 of the edge, waiting until it is really gone."""
    pid = edge_pid(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))


def is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # it may be this process's child
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except OSError:
        return False


def stop_edge(home: Path) -> None:
    """Ends the edge, and any that a killed client had started and that was only beginning."""
    for process in _processes(home):
        pid, command = process.split(" ", 1)
        if "baleen.sandbox.edge" in command:
            os.kill(int(pid), signal.SIGTERM)
            wait_until(lambda pid=int(pid): not is_alive(pid))


@pytest.fixture(scope="session")
def home_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def host(home_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """An own BALEEN_HOME; afterwards no box, mount, group or process of the test may be left."""
    monkeypatch.setenv("BALEEN_HOME", str(home_folder))
    before = footprint(home_folder)
    yield Home(home_folder)
    monkeypatch.undo()
    monkeypatch.setenv("BALEEN_HOME", str(home_folder))
    if is_alive(edge_pid(home_folder)):
        asyncio.run(_reap_all())
    stop_edge(home_folder)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: footprint(home_folder) == before)
    assert footprint(home_folder) == before


async def _reap_all() -> None:
    for box in await Sandbox.list():
        await (await Sandbox.attach(box["box"])).close()


@pytest.fixture
async def box(host: Home) -> AsyncIterator[Sandbox]:
    async with await Sandbox.create() as made:
        yield made
