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
from baleen.sandbox.backends import check_offered, is_privileged
from baleen.sandbox.edge import POOL_SIZE
from baleen.sandbox.home import Home
from baleen.sandbox.spec import BoxSpec

PROCESSES_OF_A_SPARE = 6
"""Process 1 and spawner; with backend "function" also the interpreter with its
supervisor, and the two processes that wait for the next call."""

NAMESPACES_OF_A_BOX = 9
"""Mount, pid (also for children), ipc, uts, network, user, and two of control groups: process 1's
and the spawner's. The launcher has one more that holds image layers."""


def _why_not() -> str | None:
    try:
        check_offered(BoxSpec())
    except HostError as error:
        return str(error)
    return None


def _privileged() -> bool:
    try:
        return is_privileged()
    except HostError:
        return False


needs_privilege = pytest.mark.skipif(
    not _privileged(), reason="needs root: ids and limits of the box's own"
)

DELEGATED = "BALEEN_TEST_DELEGATED"
"""Set where an ordinary user has been given control groups of his own."""

needs_limits = pytest.mark.skipif(
    not _privileged() and DELEGATED not in os.environ,
    reason="needs control groups: root, or a user who was given some",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _privileged():  # `test_ordinary_user.py` runs them as somebody else
        items[:] = [item for item in items if not item.get_closest_marker("ordinary_user")]
    reason = _why_not()
    for item in items:
        if reason and "host" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


class Footprint(NamedTuple):
    """What boxes could leave behind on the host."""

    mounts: list[str]
    groups: list[str]
    processes: list[str]
    namespaces: list[str]
    loops: list[str]
    """An edge keeps layers mounted, so these are compared when all tests are done."""
    staged: list[str]


def _processes(home: Path) -> list[str]:
    """Processes whose environment names this home: the edge, the zygote, everything in boxes."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if f"BALEEN_HOME={home}\0".encode() in (folder / "environ").read_bytes():
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()!r}")
    return found


def _namespaces(processes: list[str]) -> list[str]:
    """Those that processes are in and this one is not."""

    def of(pid: str) -> set[str]:
        with contextlib.suppress(OSError):
            return {str(link.readlink()) for link in Path("/proc", pid, "ns").iterdir()}
        return set()

    pids = (process.split(" ", 1)[0] for process in processes)
    return sorted(set().union(*map(of, pids)) - of("self"))


def _loops(home: Path) -> list[str]:
    """Loop devices whose file is of this home."""
    found = []
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if device.read_text().startswith(str(home)):
                found.append(str(device))
    return found


def footprint(home: Path) -> Footprint:
    name = Home(home).group_name
    groups = [
        f"{folder}/{group}"
        for folder, groups, _ in os.walk("/sys/fs/cgroup")  # it forgives what vanishes meanwhile
        for group in groups
        if folder.endswith(name)
    ]
    processes = _processes(home)
    return Footprint(
        mounts=Path("/proc/self/mounts").read_text().splitlines(),
        groups=groups,
        processes=processes,
        namespaces=_namespaces(processes),
        loops=_loops(home),
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
    for pid in edge_processes(home):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: not is_alive(pid))


def edge_processes(home: Path) -> set[int]:
    """Every edge of this home, those that are only starting too."""
    split = (process.split(" ", 1) for process in _processes(home))
    return {int(pid) for pid, command in split if "baleen.sandbox.edge" in command}


@pytest.fixture(scope="session")
def home_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The BALEEN_HOME of all tests; when they are done, nothing of it may live on."""
    home = tmp_path_factory.mktemp("home")
    before = footprint(home)
    yield home
    stop_edge(home)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: footprint(home) == before)
    assert footprint(home) == before


def _leftovers(home: Path, mounts_before: list[str]) -> dict[str, list[str]]:
    """What a test left beyond the edge, its launcher, the launcher's cradles, and spare boxes."""
    now = footprint(home)
    owned, spares = _sockets(home)
    groups_of_spares = 3 * (POOL_SIZE + len(spares))
    own_namespaces = 2 + NAMESPACES_OF_A_BOX * (POOL_SIZE + len(spares))
    own_processes = 2 + 2 * POOL_SIZE + PROCESSES_OF_A_SPARE * len(spares)
    return {
        "mounts": [mount for mount in now.mounts if mount not in mounts_before],
        "groups": now.groups if len(now.groups) > groups_of_spares else [],
        "processes": now.processes if len(now.processes) > own_processes else [],
        "namespaces": now.namespaces if len(now.namespaces) > own_namespaces else [],
        "staged": now.staged,
        "sockets": owned,
    }


def _account(home: Path, left: dict[str, list[str]]) -> str:
    """What is left, and what stands in each group: a report that is enough to find the leak by."""
    lines = [f"{kind}: {item}" for kind, items in left.items() for item in items]
    for group in footprint(home).groups:
        with contextlib.suppress(OSError):
            lines.append(f"{group}: {(Path(group) / 'cgroup.procs').read_text().split()}")
    lines += [f"edges {edge_processes(home)}, sockets {_sockets(home)}"]
    for process in _processes(home):
        pid = process.split(" ", 1)[0]
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()
            lines.append(f"{process}: state {stat[0]}, parent {stat[1]}")
    return "\n".join(lines)


def _sockets(home: Path) -> tuple[list[str], list[str]]:
    """The sockets of boxes and of spares: only what somebody owns has a log."""
    found = list(home.glob("boxes/*/agent.sock"))
    owned = [path for path in found if path.with_name("log").is_symlink()]
    return [str(path) for path in owned], [str(path) for path in found if path not in owned]


@pytest.fixture
def host(home_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """An own BALEEN_HOME; afterwards no box, mount, group or process of the test may be left."""
    monkeypatch.setenv("BALEEN_HOME", str(home_folder))
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    yield Home(home_folder)
    monkeypatch.undo()
    monkeypatch.setenv("BALEEN_HOME", str(home_folder))
    if is_alive(edge_pid(home_folder)):
        asyncio.run(_reap_all())
    left: dict[str, list[str]] = {}

    def is_clean() -> bool:
        left.update(_leftovers(home_folder, mounts))
        return not any(left.values())

    # One clean look is enough, and no second one follows it: groups and sockets of spares, which
    # come and go, are not counted at the same instant.
    with contextlib.suppress(AssertionError):
        wait_until(is_clean, timeout_s=20)
    if any(left.values()):
        pytest.fail(_account(home_folder, left), pytrace=False)


@pytest.fixture
def own_edge(host: Home) -> Iterator[None]:
    """For tests that change the edge's settings: it starts after them and ends with them."""
    stop_edge(host.root)
    yield
    stop_edge(host.root)


async def _reap_all() -> None:
    for box in await Sandbox.list():
        await (await Sandbox.attach(box["box"])).close()


@pytest.fixture
async def box(host: Home) -> AsyncIterator[Sandbox]:
    async with await Sandbox.create() as made:
        yield made
