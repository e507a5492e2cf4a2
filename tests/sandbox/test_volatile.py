"""Where box folders lie, and that nothing of them stays in memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from baleen.sandbox import DivergenceError, Sandbox, volatile
from baleen.sandbox.home import Home

from .conftest import kill_edge, needs_privilege, stop_edge, wait_until

needs_memory = pytest.mark.skipif(
    not volatile.places(),
    reason="no file system in memory at /run or /dev/shm",
)


@needs_privilege
@needs_memory
async def test_roots_boxes_lie_in_memory_until_the_edge_has_gone(
    host: Home, own_edge: None
) -> None:
    async with await Sandbox.create() as box:
        folder = host.boxes.readlink()
        assert (folder / box.id / "agent.sock").is_socket()
        assert volatile._is_memory(folder)
        kill_edge(host.root)
        assert (await box.run(["echo", "on"])).text == "on\n"
        assert host.boxes.readlink() == folder
    stop_edge(host.root)
    assert not host.boxes.is_symlink()
    assert not folder.parent.exists()


async def test_the_folder_of_a_box_goes_with_the_box(host: Home, own_edge: None) -> None:
    async with await Sandbox.create() as box:
        assert (host.boxes / box.id).is_dir()
    wait_until(lambda: not (host.boxes / box.id).exists())
    assert host.log_of(box.id) == host.logs / f"{box.id}.log"


async def test_a_box_that_memory_has_forgotten_answers_from_its_log(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BALEEN_SANDBOX_REMEMBERED", "0")
    counter = "echo x >> /root/n; wc -l < /root/n"
    boxes = [await Sandbox.create(), await Sandbox.create(trajectory=tmp_path / "own.log")]
    for box in boxes:
        assert (await box.shell(counter, key="k")).text == "1\n"
        await (await Sandbox.attach(box.id)).close()
        wait_until(lambda box=box: not (host.boxes / box.id).exists())
        again = await box.shell(counter, key="k")
        assert (again.text, again.replayed) == ("1\n", True)
        with pytest.raises(DivergenceError):
            await box.shell("true", key="k")


@needs_privilege
@needs_memory
def test_after_a_restart_of_the_host_there_is_a_new_folder(tmp_path: Path) -> None:
    link = tmp_path / "boxes"
    volatile.begin(link)
    first = link.readlink()
    volatile.begin(link)
    assert link.readlink() == first, "it is kept while it is there"
    volatile.end(link)
    link.symlink_to(first)
    volatile.begin(link)
    assert link.readlink() != first
    assert link.is_dir()
    volatile.end(link)
    assert not os.path.lexists(link)


@needs_privilege
@needs_memory
def test_a_folder_with_a_box_in_it_stays(tmp_path: Path) -> None:
    link = tmp_path / "boxes"
    volatile.begin(link)
    (link / "b1").mkdir()
    volatile.end(link)
    assert (link / "b1").is_dir()
    (link / "b1").rmdir()
    volatile.end(link)
    assert not os.path.lexists(link)


@needs_privilege
@needs_memory
def test_switched_off_it_leaves_memory_as_soon_as_no_box_is_in_it(tmp_path: Path) -> None:
    link = tmp_path / "boxes"
    volatile.begin(link)
    folder = link.readlink()
    (folder / "b1").mkdir()
    volatile.begin(link, enabled=False)
    assert link.readlink() == folder
    (folder / "b1").rmdir()
    volatile.begin(link, enabled=False)
    assert link.is_dir()
    assert not link.is_symlink()
    assert not folder.parent.exists()


@needs_privilege
@needs_memory
def test_a_folder_that_somebody_else_could_enter_is_not_used(tmp_path: Path) -> None:
    link = tmp_path / "boxes"
    volatile.begin(link)
    first = link.readlink()
    first.chmod(0o777)
    volatile.begin(link)
    assert link.readlink() != first
    volatile.end(link)
    _remove(first.parent)


@needs_privilege
@needs_memory
def test_what_homes_that_are_gone_have_left_is_removed(tmp_path: Path) -> None:
    left, young, linked = (tmp_path / name for name in ("left", "young", "linked"))
    for link in (left, young, linked):
        volatile.begin(link)
    folders = {link.name: link.readlink().parent for link in (left, young, linked)}
    left.unlink()
    young.unlink()
    long_ago = time.time() - 2 * volatile.SETTLING_S
    for name in ("left", "linked"):
        os.utime(folders[name], (long_ago, long_ago))
    volatile._sweep(folders["left"].parent)
    there = [name for name, folder in folders.items() if folder.exists()]
    assert there == ["young", "linked"]
    _remove(folders["young"])
    volatile.end(linked)


async def test_boxes_of_a_folder_on_disk_are_taken_over_where_they_lie(
    host: Home, own_edge: None
) -> None:
    """An earlier version had no other."""
    host.prepare()
    host.boxes.mkdir(mode=0o700)
    (host.boxes / "kept").mkdir()  # so that this edge leaves the folder on disk
    async with await Sandbox.create() as box:
        assert (host.boxes / box.id).is_dir()
        assert not host.boxes.is_symlink()
        kill_edge(host.root)
        assert (await box.run(["echo", "on"])).text == "on\n"
        assert not host.boxes.is_symlink()
    stop_edge(host.root)
    host.boxes.rmdir()


def _remove(around: Path) -> None:
    (around / volatile.NOTE).unlink()
    for folder in around.iterdir():
        folder.rmdir()
    around.rmdir()
