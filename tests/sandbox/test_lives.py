"""Pausing, snapshots and forks: what goes along, what does not, and what outlives a crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from baleen.sandbox import BoxGoneError, Sandbox
from baleen.sandbox.home import Home
from baleen.sandbox.images.errors import ImageError
from baleen.sandbox.trajectory import Kind, read

from .conftest import edge_pid, is_alive, kill_edge, needs_privilege, wait_until

TICKER = "while :; do echo x >> /tmp/ticks; sleep 0.02; done"


async def ticks(box: Sandbox) -> int:
    """Counts without asking the box, which would wake it."""
    return len((await box.files.read("/tmp/ticks")).split())


@pytest.fixture(params=["freezer", "signals"])
async def paused(
    request: pytest.FixtureRequest, host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sandbox]:
    """A box that can be paused, by the freezer of control groups and without."""
    if request.param == "signals":
        monkeypatch.setenv("BALEEN_SANDBOX_FREEZER", "off")
    async with await Sandbox.create() as box:
        pauses_by = box.capabilities()["pauses_by"]
        if pauses_by != request.param:
            pytest.skip(f"this user pauses by {pauses_by}")
        yield box


async def test_a_paused_box_stands_still_and_goes_on_where_it_was(paused: Sandbox) -> None:
    box = paused
    await box.shell(f"({TICKER}) & sleep 0.3")
    await box.pause()
    (row,) = await Sandbox.list()
    assert row["paused"]
    await asyncio.sleep(0.1)
    await box.pause()  # again: nothing
    await asyncio.sleep(0.5)
    await box.resume()
    await box.resume()
    count = await ticks(box)
    assert count < 40, "it ran while it was paused"
    while await ticks(box) < count + 5:
        await asyncio.sleep(0.1)
    kinds = [record.kind for record in read(box.trajectory)]
    assert (kinds.count(Kind.PAUSE), kinds.count(Kind.RESUME)) == (1, 1)


async def test_no_time_passes_for_the_timeout_of_a_paused_command(paused: Sandbox) -> None:
    box = paused
    running = asyncio.create_task(box.run(["sh", "-c", "sleep 1.2; echo done"], timeout_s=2))
    await asyncio.sleep(0.3)
    await box.pause()
    await asyncio.sleep(3)
    await box.resume()
    result = await running
    assert (result.text, result.timed_out) == ("done\n", False)


async def test_any_request_wakes_a_paused_box(paused: Sandbox) -> None:
    box = paused
    for number in range(3):
        await box.pause()
        assert (await box.run(["echo", str(number)])).text == f"{number}\n"
    await box.pause()
    await box.files.write("/tmp/x", "y")
    assert await box.files.read("/tmp/x") == b"y"


async def test_a_paused_box_stays_paused_over_the_death_of_its_edge(
    paused: Sandbox, host: Home
) -> None:
    box = paused
    await box.shell(f"({TICKER}) & sleep 0.2")
    await box.pause()
    kill_edge(host.root)
    (row,) = await Sandbox.list()
    assert row["paused"]
    await asyncio.sleep(0.3)
    assert (await box.run(["echo", "awake"])).text == "awake\n"
    count = await ticks(box)
    assert count < 40, "it ran while it was paused"
    await asyncio.sleep(0.5)
    assert await ticks(box) > count, "it goes on"


async def test_a_shell_that_is_paused_keeps_its_foreground_command(paused: Sandbox) -> None:
    """It would take a stopped child for one that the user has put aside."""
    shell = paused.pty(["bash", "--norc", "-im"])
    waiting = asyncio.create_task(shell.wait())
    await shell.write("sleep 1.5; echo then-$?; jobs; exit 6\n")
    await asyncio.sleep(0.5)
    for _ in range(5):
        await paused.pause()
        await paused.resume()
    result = await waiting
    assert result.exit_code == 6
    assert b"then-0" in result.stdout
    assert b"Stopped" not in result.stdout


async def test_a_snapshot_of_a_paused_box_leaves_it_paused(paused: Sandbox, host: Home) -> None:
    await paused.shell(f"({TICKER}) & sleep 0.2")
    await paused.pause()
    image = await paused.snapshot()
    (row,) = await Sandbox.list()
    assert row["paused"]
    async with await Sandbox.create(image=image) as again:
        kept = await ticks(again)
    assert await ticks(paused) - kept < 5, "this look wakes it"


async def test_a_paused_box_can_be_closed_and_jobs_are_paused_together(host: Home) -> None:
    boxes = [await Sandbox.create(job="j") for _ in range(3)]
    for box in boxes:
        await box.shell("sleep 1000 & true")
    assert sorted(await Sandbox.pause_job("j")) == sorted(box.id for box in boxes)
    await boxes[0].close()
    assert sorted(await Sandbox.resume_job("j")) == sorted(box.id for box in boxes[1:])
    await Sandbox.pause_job("j")
    assert len(await Sandbox.reap("j")) == 2
    for box in boxes[1:]:
        with pytest.raises(BoxGoneError):
            await box.run(["true"])
        await box.detach()


async def test_forks_begin_with_the_files_and_share_nothing_afterwards(host: Home) -> None:
    async with await Sandbox.create(memory_mb=128, labels={"a": "b"}) as parent:
        await parent.shell("echo base > /root/file; rm /etc/hosts; sleep 1000 &")
        await parent.run(["echo", "parent"], key="k")
        children = await parent.fork(3)
        assert len({box.id for box in (parent, *children)}) == 4
        for number, child in enumerate(children):
            assert (await child.run(["cat", "/root/file"])).text == "base\n"
            assert (await child.run(["ls", "/etc/hosts"])).exit_code == 2
            await child.shell(f"echo {number} > /root/file")
        texts = [(await child.run(["cat", "/root/file"])).text for child in children]
        assert texts == ["0\n", "1\n", "2\n"]
        assert (await parent.run(["cat", "/root/file"])).text == "base\n"
        first = next(r for r in read(children[0].trajectory) if r.kind is Kind.FORK)
        assert first.payload["parent"] == parent.id
        for child in children:
            await child.close()


@needs_privilege
async def test_forks_have_an_identity_of_their_own(host: Home) -> None:
    """Keys, host names, ids on the host, processes and random numbers do not go along."""
    async with await Sandbox.create() as parent:
        await parent.run(["echo", "first"], key="k")
        await parent.shell("sleep 1000 &")
        children = await parent.fork(2)
        boxes = [parent, *children]
        for child in children:
            assert not (await child.run(["echo", "other"], key="k")).replayed
            assert (await child.run(["hostname"])).text.strip() == child.id
            assert "sleep" not in (await child.run(["ps", "-A", "-o", "args="])).text
        random = [(await b.run(["head", "-c", "16", "/dev/urandom"])).stdout for b in boxes]
        assert len(set(random)) == 3
        maps = [(await b.run(["cat", "/proc/self/uid_map"])).text.split()[1] for b in boxes]
        assert len(set(maps)) == 3
        for child in children:
            await child.close()


async def test_a_snapshot_is_an_image_and_stands_in_the_log(box: Sandbox) -> None:
    await box.shell("mkdir /opt/tool; echo v1 > /opt/tool/version")
    image = await box.snapshot()
    await box.shell("echo v2 > /opt/tool/version")
    async with await Sandbox.create(image=image) as again:
        assert (await again.run(["cat", "/opt/tool/version"])).text == "v1\n"
    (record,) = (r for r in read(box.trajectory) if r.kind is Kind.SNAPSHOT)
    assert record.payload["image"] == image


async def test_a_snapshot_holds_one_moment_of_files_that_are_being_written(box: Sandbox) -> None:
    """Two files that grow in turn are never more than one line apart."""
    await box.shell("(while :; do echo x >> /tmp/a; echo x >> /tmp/b; done) & seq 50000 > /tmp/aa")

    async def lines(box: Sandbox, name: str) -> int:
        return (await box.files.read(f"/tmp/{name}")).count(b"\n")

    for _ in range(3):
        image = await box.snapshot()
        async with await Sandbox.create(image=image) as again:
            assert await lines(again, "a") - await lines(again, "b") in (0, 1)
    before = await lines(box, "a")
    await asyncio.sleep(0.1)
    assert await lines(box, "a") > before, "it went on"


async def test_a_snapshot_stops_programs_that_wait_for_children_on_borrowed_memory(
    box: Sandbox,
) -> None:
    """Such a child that is stopped before it has its program keeps its parent from stopping."""
    spawn = "import os\nwhile 1: os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)"
    for _ in range(3):
        await box.shell(f'python3 -S -c "{spawn}" >/dev/null 2>&1 &')
    for number in range(15):
        await box.shell(f"echo {number} > /tmp/number")
        await box.snapshot()


@pytest.mark.ordinary_user
async def test_a_file_that_its_owner_may_not_read_is_named(box: Sandbox) -> None:
    await box.shell("echo secret > /root/closed; chmod 0 /root/closed")
    with pytest.raises(ImageError, match="/root/closed"):
        await box.snapshot()


async def test_an_edge_leaves_though_its_client_held_more_boxes_than_it_remembers(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALEEN_SANDBOX_IDLE_EXIT_S", "0.2")
    monkeypatch.setenv("BALEEN_SANDBOX_REMEMBERED", "2")
    boxes = [await Sandbox.create(job="many") for _ in range(5)]
    pid = edge_pid(host.root)
    assert len(await Sandbox.reap("many")) == 5
    for box in boxes:
        await box.detach()
    wait_until(lambda: not is_alive(pid))
