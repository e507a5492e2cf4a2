"""What a box is: its file tree, mounts, limits, identity and life time."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from baleen.errors import UsageError
from baleen.sandbox import (
    BoxBusyError,
    BoxFileError,
    BoxGoneError,
    CapacityError,
    Cause,
    LaunchError,
    Sandbox,
    UnsupportedError,
)
from baleen.sandbox.cgroups import NEEDED, own_paths
from baleen.sandbox.home import Home
from baleen.sandbox.images.errors import ImageNotFoundError

from .conftest import footprint, needs_limits, needs_privilege, wait_until


async def test_the_host_image_shows_programs_and_nothing_else_of_the_host(box: Sandbox) -> None:
    listing = await box.run(["ls", "/"])
    host_only = {p.name for p in Path("/").iterdir()} - set(listing.text.split())
    assert set(listing.text.split()) >= {"bin", "etc", "proc", "tmp", "usr", "dev"}
    assert not {"work", "data", "boot", "lost+found", "mnt/"} & set(listing.text.split())
    assert host_only is not None
    passwd = await box.run(["cat", "/etc/passwd"])
    assert "root:x:0:0" in passwd.text
    assert passwd.stdout != Path("/etc/passwd").read_bytes()
    assert (await box.run(["ls", "/root", "/home"])).text.split() == ["/home:", "/root:"]


@needs_privilege
async def test_root_of_the_box_writes_anywhere_in_it_and_the_host_sees_nothing(
    box: Sandbox,
) -> None:
    result = await box.shell(
        "echo x > /usr/whale && echo y > /etc/hosts && rm /usr/bin/env && cat /usr/whale"
    )
    assert (result.exit_code, result.text) == (0, "x\n")
    assert not Path("/usr/whale").exists()
    assert Path("/usr/bin/env").exists()


async def test_a_read_only_mount_shows_the_folder_and_refuses_writes(
    host: Home, tmp_path: Path
) -> None:
    (tmp_path / "port").write_text("8443")
    async with await Sandbox.create(mounts=[(tmp_path, "/conf")]) as box:
        assert (await box.run(["cat", "/conf/port"])).text == "8443"
        denied = await box.shell(
            "echo 1 > /conf/new; echo 2 > /conf/port; rm /conf/port; touch /conf"
        )
        assert denied.stderr.count(b"Read-only file system") == 4
    assert [p.name for p in tmp_path.iterdir()] == ["port"]


async def test_a_writable_mount_belongs_to_the_same_user_on_both_sides(
    host: Home, tmp_path: Path
) -> None:
    async with await Sandbox.create(mounts=[(tmp_path, "/out", "rw")]) as box:
        await box.shell("echo krill > /out/food; stat -c %u /out/food")
    assert (tmp_path / "food").read_text() == "krill\n"
    assert (tmp_path / "food").stat().st_uid == os.getuid()


async def test_a_single_file_can_be_mounted(host: Home, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    async with await Sandbox.create(mounts=[(tmp_path / "a", "/opt/deep/a")]) as box:
        assert (await box.run(["cat", "/opt/deep/a"])).text == "one"


async def test_a_directory_can_be_the_image_and_its_links_cannot_redirect_mounts(
    host: Home, tmp_path: Path
) -> None:
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    (root / "evil").symlink_to("/etc")
    (root / "dev").symlink_to("/tmp")
    (tmp_path / "conf").mkdir()
    before = sorted(Path("/etc").iterdir())
    async with await Sandbox.create(
        image=root,
        mounts=[
            ("/usr", "/usr"),
            ("/lib64", "/lib64"),
            ("/lib", "/lib"),
            (tmp_path / "conf", "/evil/conf"),
        ],
    ) as box:
        assert (await box.run(["/usr/bin/ls", "/etc"])).text == "conf\n"
    assert sorted(Path("/etc").iterdir()) == before


@needs_limits
async def test_memory_beyond_the_limit_kills_the_command_and_not_the_box(host: Home) -> None:
    async with await Sandbox.create(memory_mb=64) as box:
        eater = "x = bytearray(200 << 20); print('ate it')"
        killed = await box.run(["sh", "-c", "kill -9 $$"])
        assert (killed.exit_code, killed.out_of_memory) == (137, False)
        result = await box.run(["/usr/bin/python3", "-c", eater], key="eater")
        assert (result.exit_code, result.stdout, result.out_of_memory) == (137, b"", True)
        assert (await box.run(["/usr/bin/python3", "-c", eater], key="eater")).out_of_memory
        assert (await box.run(["echo", "alive"])).text == "alive\n"
        below = await box.shell(f'/usr/bin/python3 -c "{eater}"; exit 3')
        assert (below.exit_code, below.out_of_memory) == (3, True)
        assert not (await box.run(["false"])).out_of_memory
    async with await Sandbox.create(memory_mb=400) as box:
        assert (await box.run(["/usr/bin/python3", "-c", eater])).text == "ate it\n"


async def test_the_pids_limit_stops_a_fork_loop_and_says_so(host: Home) -> None:
    async with await Sandbox.create(pids=20) as box:
        line = "for i in $(seq 100); do sleep 30 & done; wait"
        filler = asyncio.create_task(box.run(["bash", "-c", line], timeout_s=8))
        with contextlib.suppress(BoxBusyError):
            while not filler.done():  # until it has filled the box
                await asyncio.sleep(0.2)
                await box.run(["true"])
        with pytest.raises(BoxBusyError, match="limit"):
            await box.run(["true"], key="later")
        assert b"Resource temporarily unavailable" in (await filler).stderr
        assert (await box.run(["true"], key="later")).exit_code == 0


async def test_disk_beyond_the_cap_is_refused_with_no_space_left(host: Home) -> None:
    async with await Sandbox.create(disk_mb=8, memory_mb=256) as box:
        result = await box.run(["dd", "if=/dev/zero", "of=/root/big", "bs=1M", "count=100"])
        assert b"No space left on device" in result.stderr
        await box.run(["rm", "/root/big"])
        files = "for n in range(10**6): open(f'/root/{n}', 'w').close()"
        assert (
            b"No space left on device" in (await box.run(["/usr/bin/python3", "-c", files])).stderr
        )


async def test_a_full_disk_is_named_and_space_that_is_freed_can_be_written(host: Home) -> None:
    async with await Sandbox.create(disk_mb=8, memory_mb=256) as box:
        with pytest.raises(BoxFileError, match="disk_mb") as full:
            await box.files.write("/root/big", bytes(16 << 20))
        assert full.value.cause is Cause.DISK_FULL
        with pytest.raises(BoxFileError) as other:
            await box.files.read("/root/nothing")
        assert other.value.cause is None
        assert (await box.run(["rm", "-f", "/root/big"])).exit_code == 0
        await box.files.write("/root/small", bytes(1 << 20))


@needs_limits
@pytest.mark.parametrize(("memory_mb", "exit_code"), [(32, 137), (256, 0)])
async def test_what_a_box_writes_counts_as_its_memory(
    host: Home, memory_mb: int, exit_code: int
) -> None:
    async with await Sandbox.create(disk_mb=128, memory_mb=memory_mb) as box:
        result = await box.run(["dd", "if=/dev/zero", "of=/root/big", "bs=1M", "count=64"])
        assert result.exit_code == exit_code, result


@needs_limits
async def test_cpu_time_is_capped(host: Home) -> None:
    async with await Sandbox.create(cpu=0.2) as box:
        burn = (
            "import time; end = time.time() + 1.5\n"
            "while time.time() < end: pass\n"
            "print(time.process_time())"
        )
        used = float((await box.run(["/usr/bin/python3", "-c", burn])).text)
        assert used < 0.75


async def test_boxes_do_not_see_each_other(host: Home) -> None:
    async with await Sandbox.create() as one, await Sandbox.create() as two:
        await one.shell("sleep 60 & echo secret > /tmp/mark; hostname")
        assert "sleep" not in (await two.run(["ps", "-A", "-o", "args="])).text
        assert (await two.run(["cat", "/tmp/mark"])).exit_code == 1
        names = [(await box.run(["hostname"])).text.strip() for box in (one, two)]
        assert names == [one.id, two.id]


async def test_there_is_no_network_but_loopback(box: Sandbox) -> None:
    assert (await box.run(["ls", "/sys/class/net"])).text == "lo\n"
    served = await box.run(
        [
            "/usr/bin/python3",
            "-c",
            (
                "import socket; s = socket.create_server(('127.0.0.1', 80)); "
                "c = socket.create_connection(('127.0.0.1', 80)); print('talks')"
            ),
        ]
    )
    assert served.text == "talks\n"


async def test_a_box_without_client_and_command_expires(host: Home) -> None:
    box = await Sandbox.create(ttl_idle_s=0.5)
    await box.detach()
    for _ in range(100):
        await asyncio.sleep(0.1)
        if not await Sandbox.list():
            break
    with pytest.raises(BoxGoneError) as caught:
        await Sandbox.attach(box.id)
    assert caught.value.cause == "expired"
    assert "ttl_idle_s" in str(caught.value)


async def test_a_client_or_a_running_command_keeps_a_box_alive(host: Home) -> None:
    async with await Sandbox.create(ttl_idle_s=0.3) as held:
        await asyncio.sleep(1.5)
        assert (await held.run(["true"])).exit_code == 0
    busy = await Sandbox.create(ttl_idle_s=0.3)
    running = asyncio.create_task(busy.run(["sleep", "2"]))
    await asyncio.sleep(0.3)
    running.cancel()
    await busy.detach()
    await asyncio.sleep(1.0)
    assert [b["box"] for b in await Sandbox.list()] == [busy.id]


async def test_boxes_are_reaped_by_job(host: Home) -> None:
    ours = [await Sandbox.create(job="ours", labels={"n": str(n)}) for n in range(3)]
    other = await Sandbox.create(job="other")
    assert [b["box"] for b in await Sandbox.list({"n": "1"})] == [ours[1].id]
    assert sorted(await Sandbox.reap("ours")) == sorted(b.id for b in ours)
    assert [b["box"] for b in await Sandbox.list()] == [other.id]
    with pytest.raises(BoxGoneError) as caught:
        await ours[0].run(["true"])
    assert caught.value.cause == "evicted"
    for box in (*ours, other):
        await box.detach()


async def test_admission_refuses_with_a_typed_error(
    own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALEEN_SANDBOX_MAX_BOXES", "2")
    boxes = [await Sandbox.create() for _ in range(2)]
    with pytest.raises(CapacityError, match="limit is 2"):
        await Sandbox.create()
    for box in boxes:
        await box.close()
    async with await Sandbox.create() as box:
        assert (await box.run(["true"])).exit_code == 0


async def test_what_is_not_offered_is_refused_with_a_reason(host: Home, tmp_path: Path) -> None:
    for options in ({"backend": "microvm"},):
        with pytest.raises(UnsupportedError, match="not"):
            await Sandbox.create(**options)
    for options in ({"image": "debian:12"}, {"workspace": "w"}, {"toolkits": ["t"]}):
        with pytest.raises(ImageNotFoundError, match="no image"):
            await Sandbox.create(**options)
    for options in (
        {"backend": "teapot"},
        {"memory_mb": 1},
        {"mounts": [("/no/such/folder", "/x")]},
        {"mounts": [(tmp_path, "relative")]},
        {"mounts": [(tmp_path, "/x", "rwx")]},
    ):
        with pytest.raises(UsageError):
            await Sandbox.create(**options)


async def test_a_failed_launch_leaves_nothing(host: Home, tmp_path: Path) -> None:
    (tmp_path / "usr").write_text("a file where a folder must be")
    async with await Sandbox.create() as box:
        await asyncio.sleep(0.5)  # until the spares are built
        before = footprint(host.root)
        with pytest.raises(LaunchError, match="/usr/deep"):
            await Sandbox.create(image=tmp_path, mounts=[("/etc", "/usr/deep")])
        wait_until(lambda: len(footprint(host.root).groups) <= len(before.groups))
        wait_until(lambda: len(footprint(host.root).processes) <= len(before.processes))
        sockets = host.boxes.glob("*/agent.sock")
        assert [s.parent.name for s in sockets if s.with_name("log").is_symlink()] == [box.id]


def _groups(pid: int) -> dict[str, Path]:
    """The control groups of a box, by controller, found by its spawner."""
    (spawner, *_) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    paths = own_paths(Path(f"/proc/{spawner}/cgroup").read_text())
    root = Path("/sys/fs/cgroup")
    v1 = {name: root / name / paths[name].strip("/") for name in NEEDED if name in paths}
    return v1 or dict.fromkeys(NEEDED, root / paths[""].strip("/"))


def _value(groups: dict[str, Path], controller: str, *files: str) -> str:
    found = [groups[controller] / file for file in files if (groups[controller] / file).exists()]
    return found[0].read_text()


@needs_privilege
async def test_control_groups_used_again_hold_nothing_of_the_last_box(
    host: Home, own_edge: None
) -> None:
    names = []
    for number in range(16):
        limits = {"memory_mb": 64 + number, "pids": 20 + number}
        async with await Sandbox.create(**limits, one_off=True) as box:
            (row,) = await Sandbox.list()
            groups = _groups(row["pid"])
            names.append(groups["pids"].name)
            memory = _value(groups, "memory", "memory.limit_in_bytes", "memory.max")
            assert int(memory) == (64 + number) << 20
            assert int(_value(groups, "pids", "pids.max")) == 20 + number
            kills = _value(groups, "memory", "memory.oom_control", "memory.events")
            assert "oom_kill 0" in kills.splitlines()
            used = _value(groups, "memory", "memory.usage_in_bytes", "memory.current")
            assert int(used) < 8 << 20
            await box.shell("head -c 20000000 /dev/zero > /tmp/x; sleep 60 &")
            if number == 8:
                fill = "x = b'x' * (1 << 30)"
                assert (await box.run(["python3", "-c", fill])).exit_code == 137
    assert len(set(names)) < len(names), "none was used again"
    assert names[8] not in names[9:], "the memory killer's count stays with a group"


async def test_a_hundred_boxes_live_at_once(host: Home, tmp_path: Path) -> None:
    (tmp_path / "n").write_text("1")
    boxes = await asyncio.gather(
        *(Sandbox.create(mounts=[(tmp_path, "/conf")]) for _ in range(100))
    )
    results = await asyncio.gather(*(box.run(["cat", "/conf/n", "/etc/hostname"]) for box in boxes))
    assert {result.stdout for result in results} == {b"1"}
    await asyncio.gather(*(box.close() for box in boxes))
    assert await Sandbox.list() == []
