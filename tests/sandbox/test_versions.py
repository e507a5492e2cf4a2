"""An edge that another installation has left: named, and replaced only when it holds no box."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import baleen
from baleen.sandbox import EdgeError, Sandbox
from baleen.sandbox.binary import box_binary
from baleen.sandbox.home import Home

from .conftest import edge_pid, is_alive, stop_edge, wait_until

KEEP_A_BOX = "import baleen.sandbox.sync as s; b = s.Sandbox.create(); b.detach(); print(b.id)"
CLOSE_IT = "import sys, baleen.sandbox.sync as s; s.Sandbox.attach(sys.argv[1]).close()"


@pytest.fixture
def other(host: Home, own_edge: None, tmp_path: Path) -> Iterator[Path]:
    """A copy of the package that calls itself another version."""
    source = Path(baleen.__file__).parent
    package = tmp_path / "other/baleen"
    package.mkdir(parents=True)
    for part in ("errors.py", "sandbox"):
        copy = shutil.copytree if (source / part).is_dir() else shutil.copy
        copy(source / part, package / part)
    (package / "__init__.py").write_text('__version__ = "0.0.1"\n')
    yield package.parent
    stop_edge(host.root)


def run_in(other: Path, code: str, *arguments: str) -> str:
    libraries = [path for path in sys.path if path and not (Path(path) / "baleen").exists()]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(other), *libraries]),
            "BALEEN_SANDBOX_BINARY": str(box_binary()),
        },
        check=True,
    )
    return done.stdout.strip()


async def test_an_edge_of_another_version_that_holds_a_box_is_named_and_stays(
    host: Home, other: Path
) -> None:
    box = run_in(other, KEEP_A_BOX)
    edge = edge_pid(host.root)
    with pytest.raises(EdgeError) as caught:
        await Sandbox.create()
    said = str(caught.value)
    for part in (str(other), "0.0.1", baleen.__version__, "1 live boxes", str(edge)):
        assert part in said
    assert "close them" in said
    assert edge_pid(host.root) == edge
    assert is_alive(edge)
    run_in(other, CLOSE_IT, box)  # it was not harmed, and its own installation can still reach it
    async with await Sandbox.create() as made:
        assert (await made.run(["echo", "new"])).text == "new\n"


async def test_an_edge_of_another_version_without_boxes_is_replaced(
    host: Home, other: Path
) -> None:
    run_in(other, CLOSE_IT, run_in(other, KEEP_A_BOX))
    edge = edge_pid(host.root)
    assert is_alive(edge)
    async with await Sandbox.create() as made:
        assert (await made.run(["echo", "new"])).text == "new\n"
    assert edge_pid(host.root) != edge
    wait_until(lambda: not is_alive(edge))


async def test_an_edge_that_is_told_to_go_leaves_every_request_to_the_next(host: Home) -> None:
    """What its clients ask while it goes is neither lost nor done by both."""
    box = await Sandbox.create()
    for number in range(4):
        edge = edge_pid(host.root)
        assert edge is not None
        commands = [
            asyncio.create_task(box.run(["sh", "-c", f"echo {number}-{n} >> /tmp/n; sleep 0.05"]))
            for n in range(6)
        ]
        makings = [asyncio.create_task(Sandbox.create()) for _ in range(3)]
        await asyncio.sleep(0.01 * number)
        os.kill(edge, signal.SIGTERM)
        assert {result.exit_code for result in await asyncio.gather(*commands)} == {0}
        for made in await asyncio.gather(*makings):
            assert (await made.run(["echo", "lives"])).text == "lives\n"
            await made.close()
        wait_until(lambda edge=edge: not is_alive(edge))
    said = (await box.run(["cat", "/tmp/n"])).text.split()
    assert sorted(said) == sorted(f"{number}-{n}" for number in range(4) for n in range(6))
    await box.close()
