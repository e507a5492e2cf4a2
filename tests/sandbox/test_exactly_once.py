"""Keys, divergence, and death at any moment of client, edge, or box: nothing runs twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from baleen.sandbox import (
    BoxGoneError,
    DivergenceError,
    InDoubtError,
    RunResult,
    Sandbox,
)
from baleen.sandbox.binary import box_binary
from baleen.sandbox.home import Home
from baleen.sandbox.trajectory import Kind, read, verify

from .conftest import edge_pid, edge_processes, is_alive, kill_edge, wait_until

KILLS = os.environ.get("BALEEN_TEST_KILLS", "120")


COUNT = "echo $1 >> /tmp/count; sleep 0.02; wc -l < /tmp/count"


def counted(word: str) -> list[str]:
    """A command that must not run twice: it appends to a file of the box."""
    return ["sh", "-c", COUNT, "count", word]


async def executions(box: Sandbox) -> list[str]:
    return (await box.run(["cat", "/tmp/count"])).text.split()


async def test_the_same_key_gives_the_recorded_result_without_running(box: Sandbox) -> None:
    first = await box.run(counted("a"), key="step-1")
    again = await box.run(counted("a"), key="step-1")
    assert not first.replayed
    assert again.replayed
    assert again == RunResult(**{**first.to_wire(), "replayed": True})
    assert await executions(box) == ["a"]


async def test_the_same_key_with_other_arguments_is_an_error(box: Sandbox) -> None:
    await box.run(counted("a"), key="k", env={"A": "1"})
    for argv, options in (
        (counted("b"), {"env": {"A": "1"}}),
        (counted("a"), {"env": {"A": "2"}}),
        (counted("a"), {}),
    ):
        with pytest.raises(DivergenceError, match="'k'"):
            await box.run(argv, key="k", **options)
    assert await executions(box) == ["a"]


async def test_without_a_key_every_call_runs(box: Sandbox) -> None:
    for _ in range(3):
        await box.run(counted("a"))
    assert await executions(box) == ["a"] * 3


async def test_two_callers_with_one_key_share_one_execution(box: Sandbox) -> None:
    other = await Sandbox.attach(box.id)
    results = await asyncio.gather(*(b.run(counted("a"), key="k") for b in (box, other, box)))
    assert {r.stdout for r in results} == {b"1\n"}
    assert sorted(r.replayed for r in results) == [False, True, True]
    assert await executions(box) == ["a"]
    await other.detach()


async def test_long_output_is_replayed_whole_from_its_blob(box: Sandbox) -> None:
    line = "head -c 3000000 /dev/urandom; head -c 200000 /dev/urandom >&2"
    first = await box.run(["sh", "-c", line], key="k")
    again = await box.run(["sh", "-c", line], key="k")
    assert (first.stdout, first.stderr) == (again.stdout, again.stderr)
    assert len(first.stdout) == 3_000_000
    await box.detach()
    assert verify(box.trajectory) == 3


async def test_the_log_holds_intent_before_result_and_says_why_the_box_ended(
    host: Home, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "sandbox.log"
    async with await Sandbox.create(trajectory=path, job="j") as box:
        await box.run(["echo", "hi"], key="k")
        assert box.trajectory == path
    kinds = [(record.kind, record.key) for record in read(path)]
    assert kinds == [(Kind.OPEN, None), (Kind.INTENT, "k"), (Kind.RESULT, "k"), (Kind.CLOSE, None)]
    assert verify(path) == 4


async def test_a_box_survives_the_death_of_its_edge(box: Sandbox, host: Home) -> None:
    await box.run(counted("a"), key="1")
    await box.shell("sleep 1000 & echo kept > /tmp/kept")
    old = edge_pid(host.root)
    kill_edge(host.root)
    assert (await box.run(counted("a"), key="1")).replayed
    assert (await box.run(counted("b"), key="2")).text == "2\n"
    assert edge_pid(host.root) != old
    assert (await box.run(["pgrep", "sleep"])).exit_code == 0
    assert (await box.run(["cat", "/tmp/kept"])).text == "kept\n"


async def test_a_command_outlives_the_edge_and_its_result_is_collected(
    box: Sandbox, host: Home
) -> None:
    running = asyncio.create_task(box.run(["sh", "-c", f"sleep 1; {COUNT}", "x", "a"], key="k"))
    await asyncio.sleep(0.4)
    kill_edge(host.root)
    assert (await running).text == "1\n"
    assert await executions(box) == ["a"]


async def test_the_result_of_a_command_that_ended_while_no_edge_lived_is_kept(
    box: Sandbox, host: Home
) -> None:
    running = asyncio.create_task(box.run(["sh", "-c", f"sleep 0.6; {COUNT}", "x", "a"], key="k"))
    await asyncio.sleep(0.3)
    os.kill(edge_pid(host.root) or 0, signal.SIGSTOP)
    await asyncio.sleep(0.8)
    kill_edge(host.root)
    assert (await running).text == "1\n"
    assert await executions(box) == ["a"]


async def test_a_command_whose_box_died_is_in_doubt_and_never_run_again(host: Home) -> None:
    box = await Sandbox.create()
    first = asyncio.create_task(box.run(["sleep", "60"], key="k"))
    await asyncio.sleep(0.3)
    (row,) = await Sandbox.list()
    os.kill(row["pid"], signal.SIGKILL)
    with pytest.raises(InDoubtError):
        await first
    with pytest.raises(InDoubtError, match="may or may not"):
        await box.run(["sleep", "60"], key="k")
    with pytest.raises(BoxGoneError) as caught:
        await box.run(["true"])
    assert caught.value.cause == "node-lost"
    await box.detach()


async def test_an_edge_that_is_killed_while_it_starts_is_started_again(
    own_edge: None, host: Home
) -> None:
    making = asyncio.create_task(Sandbox.create())
    killed: set[int] = set()
    while len(killed) < 3:
        assert not making.done()
        await asyncio.sleep(0.001)
        for pid in edge_processes(host.root) - killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    async with await making as box:
        assert (await box.run(["echo", "hi"])).text == "hi\n"
    assert edge_pid(host.root) not in killed


async def test_boxes_outlive_the_launcher_and_a_new_one_takes_over(
    box: Sandbox, host: Home
) -> None:
    edge = edge_pid(host.root)
    for _ in range(2):
        (zygote,) = Path(f"/proc/{edge}/task/{edge}/children").read_text().split()
        os.kill(int(zygote), signal.SIGKILL)
        assert (await box.run(["echo", "alive"])).text == "alive\n"
        async with await Sandbox.create() as another:
            assert (await another.run(["echo", "new"])).text == "new\n"
    assert edge_pid(host.root) == edge


async def test_boxes_made_while_launchers_are_killed_start_all_the_same(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box whose launcher dies before the edge has reached it is begun again.

    Each kill waits until a box has been made since the last: no box could be on a host where every
    launcher dies at once, and how many kills one attempt sees must not depend on the machine.
    """
    monkeypatch.setenv("BALEEN_SANDBOX_POOL_SIZE", "0")  # each is launched when it is asked for
    chance = random.Random(5)
    made = 0

    async def lives(count: int) -> int:
        nonlocal made
        for number in range(count):
            async with await Sandbox.create() as box:
                made += 1
                assert (await box.run(["echo", str(number)])).text == f"{number}\n"
        return count

    async with await Sandbox.create():
        edge = edge_pid(host.root)
        work = [asyncio.create_task(lives(100)) for _ in range(4)]
        kills = made_at_kill = 0
        while not all(task.done() for task in work):
            await asyncio.sleep(0.05 + 0.1 * chance.random())
            if made < made_at_kill + 3:
                continue
            made_at_kill = made
            for child in Path(f"/proc/{edge}/task/{edge}/children").read_text().split():
                if "zygote" in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(int(child), signal.SIGKILL)
                    kills += 1
        assert sum([task.result() for task in work]) == 400
    assert kills > 10


async def test_boxes_made_while_the_edge_is_killed_are_whole_or_gone(host: Home) -> None:
    """Creation names its box, so asking again after the edge's death never makes a second one."""
    chance = random.Random(3)

    async def life(number: int) -> bytes:
        async with await Sandbox.create(labels={"n": str(number)}) as box:
            return (await box.run(["echo", str(number)])).stdout

    lives = [asyncio.create_task(life(number)) for number in range(40)]
    for _ in range(5):
        await asyncio.sleep(0.05 + 0.4 * chance.random())
        if is_alive(edge_pid(host.root)):
            kill_edge(host.root)
    assert await asyncio.gather(*lives) == [f"{number}\n".encode() for number in range(40)]
    assert await Sandbox.list() == []


async def test_recorded_results_outlive_the_box(host: Home) -> None:
    box = await Sandbox.create()
    await box.run(counted("a"), key="k")
    (row,) = await Sandbox.list()
    os.kill(row["pid"], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{row['pid']}").exists())
    assert (await box.run(counted("a"), key="k")).replayed
    kill_edge(host.root)
    assert (await box.run(counted("a"), key="k")).replayed
    await box.detach()


def test_kills_at_random_moments_leave_every_command_run_exactly_once(
    own_edge: None, host: Home
) -> None:
    """kill -9 of clients, edge, agents and launcher; the script judges by the effects."""
    script = Path(__file__).parents[2] / "benchmarks" / "sandbox_crash.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", KILLS, "--workers", "4", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "BALEEN_HOME": str(host.root), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    found = json.loads(done.stdout)
    assert found["commands"] > 50
    assert min(found[f"killed_{who}"] for who in ("client", "edge", "agent")) > 0


async def test_boxes_that_are_removed_while_their_launcher_is_killed_leave_nothing(
    host: Home,
) -> None:
    boxes = await asyncio.gather(*(Sandbox.create() for _ in range(12)))
    for _ in range(3):
        edge = edge_pid(host.root)
        for zygote in Path(f"/proc/{edge}/task/{edge}/children").read_text().split():
            os.kill(int(zygote), signal.SIGKILL)
        closing, boxes = boxes[:4], boxes[4:]
        more = asyncio.gather(*(Sandbox.create() for _ in range(2)))
        await asyncio.gather(*(box.close() for box in closing))
        await asyncio.gather(*(box.close() for box in await more))
    assert not await Sandbox.list()  # and the fixture counts processes and groups


async def test_boxes_are_gone_though_no_launcher_lived_to_end_them(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every launcher ends as soon as it is there; closing a box must free the host all the same."""
    binary = tmp_path / "baleen-box"
    binary.symlink_to(box_binary())
    monkeypatch.setenv("BALEEN_SANDBOX_BINARY", str(binary))
    boxes = [await Sandbox.create() for _ in range(3)]
    for box in boxes:
        await box.shell("sleep 1000 & true")
    pids = [row["pid"] for row in await Sandbox.list()]
    binary.unlink()
    binary.symlink_to("/bin/false")
    edge = edge_pid(host.root)
    (launcher,) = Path(f"/proc/{edge}/task/{edge}/children").read_text().split()
    os.kill(int(launcher), signal.SIGKILL)
    wait_until(lambda: not is_alive(int(launcher)))
    await asyncio.gather(*(box.close() for box in boxes))
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
