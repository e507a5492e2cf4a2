"""What agents have been seen to try, and what outlives a box that it should not.

As in ``test_security.py`` every attempt is made outside, too, or where it is allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from baleen.errors import SandboxError, UsageError
from baleen.sandbox import (
    Allowlist,
    BoxFileError,
    BoxGoneError,
    Cause,
    EdgeError,
    InDoubtError,
    Sandbox,
)
from baleen.sandbox.egress import Egress, _Refused
from baleen.sandbox.frames import HEADER, MAX_FRAME_BYTES, FrameBuffer, Link, pack
from baleen.sandbox.home import Home
from baleen.sandbox.trajectory import read, verify

from .conftest import edge_pid, kill_edge, needs_privilege, stop_edge, wait_until
from .test_security import PYTHON, SYSCALL, attempt, needs_python, outside


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found is not None
    return int(found[1]) / 1024


SECRET = "the answers of the run before"
HIDE = f"""
    for place in /tmp /dev/shm /root /var/tmp /run /usr/local /etc; do
        echo '{SECRET}' > $place/answers; done
    sleep 1000 & sysctl -w kernel.shmmax=1 2>/dev/null
    {PYTHON} -c "import ctypes; c = ctypes.CDLL(None); print(c.shmget(7777, 4096, 0o1666))"
"""


@needs_python
async def test_nothing_of_a_box_is_left_to_the_next_one(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, processes and shared memory; the next box even has the same ids on the host."""
    monkeypatch.setenv("BALEEN_SANDBOX_POOL_SIZE", "0")
    look = f"grep -rls '{SECRET}' /tmp /dev/shm /root /var/tmp /run /usr/local /etc; ps -A -o args="
    async with await Sandbox.create() as box:
        assert int((await box.shell(HIDE)).text) >= 0
        seen = (await box.shell(look)).text
        assert "/tmp/answers" in seen
        assert "sleep 1000" in seen
        ids = (await box.run(["cat", "/proc/self/uid_map"])).text
        (row,) = await Sandbox.list()
    wait_until(lambda: not Path(f"/proc/{row['pid']}").exists())
    await asyncio.sleep(0.3)  # until its ids are free again
    async with await Sandbox.create() as box:
        assert (await box.run(["cat", "/proc/self/uid_map"])).text == ids
        seen = (await box.shell(look)).text
        assert "answers" not in seen.replace(SECRET, "")
        assert "sleep 1000" not in seen
        find_segment = "import ctypes; print(ctypes.CDLL(None).shmget(7777, 4096, 0))"
        assert (await attempt(box, find_segment)).text == "-1\n"


async def test_no_log_of_the_runtime_can_be_read_in_a_box(box: Sandbox, host: Home) -> None:
    await box.run(["echo", "marked-in-the-log"], key="k")
    assert b"marked-in-the-log" in box.trajectory.read_bytes()
    search = (
        "grep -rls marked-in-the-log / --exclude-dir=proc --exclude-dir=sys; find / -name '*.log'"
    )
    found = (await box.shell(search, timeout_s=120)).text
    assert str(host.root) not in found
    assert box.trajectory.name not in found


async def test_a_program_that_a_box_overwrites_is_whole_everywhere_else(host: Home) -> None:
    """So that a grader's shell is not the one that an agent has put there."""
    evil = "#!/bin/cat\nevil\n"
    before = Path("/bin/bash").read_bytes()
    async with await Sandbox.create() as box, await Sandbox.create() as beside:
        can_write = await box.run(["sh", "-c", "cat > /tmp/e && cp /tmp/e /bin/bash"], stdin=evil)
        if box.capabilities()["own_ids"] or os.geteuid() != 0:
            assert can_write.exit_code == 0, can_write
            assert (await box.run(["cat", "/bin/bash"])).text == evil
        assert (await beside.run(["bash", "-c", "echo whole"])).text == "whole\n"
    async with await Sandbox.create() as after:
        assert (await after.run(["bash", "-c", "echo whole"])).text == "whole\n"
    assert Path("/bin/bash").read_bytes() == before


@needs_python
async def test_a_port_scan_finds_the_boxs_own_servers_only(box: Sandbox) -> None:
    scan = """
        import socket, sys
        found = []
        for port in [int(sys.argv[1]), 8088]:
            with socket.socket() as s:
                s.settimeout(0.2)
                found += [port] if s.connect_ex(("127.0.0.1", port)) == 0 else []
        print(found)
    """
    serve = "python3 -m http.server --bind 127.0.0.1 8088 --directory /srv >/dev/null 2>&1 &"
    await box.shell(f"{serve} sleep 1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert outside(scan, str(port)) == f"[{port}]\n"
        assert (await attempt(box, scan, str(port))).text == "[8088]\n"
    interfaces = (await box.run(["cat", "/proc/net/route"])).text.splitlines()
    assert len(interfaces) == 1, "nothing to scan beyond: no route leads anywhere"


async def test_a_package_proxy_that_is_not_listed_fetches_nothing(host: Home) -> None:
    """The case of a module proxy beside the one that was meant to be reached; nothing is asked."""
    asked: list[str] = []

    async def lookup(name: str, *_: Any, **__: Any) -> Any:
        asked.append(name)
        raise socket.gaierror

    loop = asyncio.get_running_loop()
    egress = Egress(None, Allowlist(["index.example.org:443"]))  # type: ignore[arg-type]
    original, loop.getaddrinfo = loop.getaddrinfo, lookup  # type: ignore[method-assign]
    try:
        for name, answer in (
            ("modules.example.org", b"403"),
            ("c2VjcmV0.leak.example.org", b"403"),
            ("index.example.org", b"502"),
        ):
            with pytest.raises(_Refused) as refused:
                await egress._reach(name, 443)
            assert answer in refused.value.answer
    finally:
        loop.getaddrinfo = original  # type: ignore[method-assign]
    assert asked == ["index.example.org"], "a name that is not allowed is not even resolved"


async def test_gigabytes_of_output_take_no_memory_of_the_host(box: Sandbox, host: Home) -> None:
    pid = edge_pid(host.root)
    assert pid is not None
    (row,) = await Sandbox.list()
    before = resident_mb(pid), resident_mb(row["pid"])
    line = "head -c 2000000000 /dev/zero; head -c 500000000 /dev/zero >&2; echo end > /tmp/end"
    result = await box.shell(line, timeout_s=120, max_output_bytes=1 << 20)
    assert (len(result.stdout), len(result.stderr), result.truncated) == (1 << 20, 1 << 20, True)
    assert (await box.run(["cat", "/tmp/end"])).text == "end\n", "it was not stopped either"
    assert resident_mb(pid) - before[0] < 64
    assert resident_mb(row["pid"]) - before[1] < 64


@needs_python
async def test_a_disk_full_of_empty_files_is_refused_and_can_be_emptied(host: Home) -> None:
    code = """
        import errno, os
        made = 0
        try:
            while made < 50_000:
                open(f"/srv/{made}", "w").close()
                made += 1
        except OSError as error:
            print(errno.errorcode[error.errno], made > 1000)
    """
    async with await Sandbox.create(disk_mb=8) as box:
        assert (await attempt(box, code)).text == "ENOSPC True\n"
        with pytest.raises(BoxFileError) as full:
            await box.files.write("/srv/one-more", "")
        assert full.value.cause is Cause.DISK_FULL
        await box.shell("cd /srv && ls -f | xargs rm -f 2>/dev/null")
        await box.files.write("/srv/one-more", "")
    async with await Sandbox.create(disk_mb=256) as box:
        assert (await attempt(box, code)).text == "", "the control: a larger box takes them all"


@needs_python
async def test_processes_that_nobody_waits_for_do_not_stay(box: Sandbox) -> None:
    """Orphans are taken in and reaped; zombies that their parent keeps go with it."""
    orphans = """
        import os, time
        for _ in range(50):
            if os.fork() == 0:
                if os.fork() == 0:
                    time.sleep(0.1)
                os._exit(0)
            os.wait()
    """
    keeper = "import os, time; [os.fork() or os._exit(0) for _ in range(50)]; time.sleep(60)"
    count = "ps -A -o stat= | grep -c ^Z || true"
    await attempt(box, orphans)
    await box.shell(f"{PYTHON} -c '{keeper}' >/dev/null 2>&1 & sleep 0.5")
    assert int((await box.shell(count)).text) >= 50, "the control: they are there"
    await box.run(["pkill", "-9", "python3"])
    await asyncio.sleep(0.5)
    assert (await box.shell(count)).text == "0\n"


async def test_a_written_file_replaces_a_link_and_leaves_what_it_led_to(box: Sandbox) -> None:
    await box.shell("echo keep > /srv/goal; ln -s /srv/goal /srv/soft; ln /srv/goal /srv/hard")
    assert (await box.shell("echo through >> /srv/soft; cat /srv/goal")).text == "keep\nthrough\n"
    for name in ("soft", "hard"):
        await box.files.write(f"/srv/{name}", "new")
    assert await box.files.read("/srv/goal") == b"keep\nthrough\n"
    assert (await box.run(["find", "/srv", "-type", "l"])).text == ""


@needs_privilege
@needs_python
async def test_a_process_of_another_box_cannot_be_traced(host: Home) -> None:
    seize = "import ctypes, sys; print(ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), 0, 0))"
    async with await Sandbox.create() as one, await Sandbox.create() as two:
        running = asyncio.create_task(one.run(["sleep", "30"]))
        await asyncio.sleep(0.5)
        row = next(row for row in await Sandbox.list() if row["box"] == one.id)
        family = [row["pid"]]
        for pid in family:
            family += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        victim = str(family[-1])
        assert outside(seize, victim) == "0\n", "the control: root of the host may"
        for pid in (victim, row["pid"], "1"):
            assert (await attempt(two, seize, str(pid))).text == "-1\n"
        running.cancel()


async def test_the_namespaces_of_others_cannot_be_entered(box: Sandbox) -> None:
    inside = await box.shell("sleep 60 & nsenter -t $! -m true; nsenter -t 1 -m true")
    assert inside.stderr.count(b"nsenter: ") == 2
    if os.geteuid() == 0:
        with subprocess.Popen(["unshare", "-m", "sleep", "60"]) as other:
            entered = subprocess.run(["nsenter", "-t", str(other.pid), "-m", "true"], check=False)
            other.kill()
        assert entered.returncode == 0


@needs_privilege
@needs_python
async def test_control_groups_give_no_command_to_the_host(box: Sandbox) -> None:
    """The way out by release_agent needs a hierarchy that can be mounted or written."""
    mount = [str(number) for number in (165, 0, 0, 0, 0, 0)]
    assert (await attempt(box, SYSCALL, *mount)).text.split() == ["-1", "1"]
    assert outside(SYSCALL, *mount).split()[1] != "1"
    writable = await box.shell("find / -name release_agent -o -name cgroup.procs 2>/dev/null")
    assert writable.text == ""
    assert list(Path("/sys/fs/cgroup").rglob("cgroup.procs")), "the control: the host has them"


@needs_privilege
async def test_a_reused_process_id_is_nobodys_box(host: Home, own_edge: None) -> None:
    """The box dies while no edge lives, and another process gets its number."""
    box = await Sandbox.create()
    await box.run(["true"])
    (row,) = await Sandbox.list()
    number = row["pid"]
    kill_edge(host.root)
    os.kill(number, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{number}").exists())
    innocent = _process_numbered(number)
    try:
        with pytest.raises(BoxGoneError) as gone:
            await box.run(["true"])
        assert gone.value.cause == "node-lost"
        await box.close()
        await asyncio.sleep(0.2)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def _process_numbered(number: int) -> subprocess.Popen[bytes]:
    last = Path("/proc/sys/kernel/ns_last_pid")
    for _ in range(500):
        last.write_text(str(number - 1))
        process = subprocess.Popen(["sleep", "60"])
        if process.pid == number:
            return process
        process.kill()
        process.wait()
    pytest.skip(f"the kernel gave the number {number} to nobody")


async def test_a_box_that_is_resumed_twice_at_once_goes_on_once(box: Sandbox) -> None:
    await box.shell("(while :; do echo x >> /tmp/ticks; sleep 0.02; done) & true")
    for _ in range(3):
        await box.pause()
        await asyncio.gather(*(box.resume() for _ in range(4)), box.run(["true"]))
    assert (await box.run(["echo", "alive"])).text == "alive\n"
    assert not any(row["paused"] for row in await Sandbox.list())
    records = [record.kind.value for record in read(box.trajectory)]
    assert records.count("pause") == records.count("resume") == 3


async def test_commands_beside_the_closing_of_their_box_have_a_result_or_a_cause(
    host: Home,
) -> None:
    for _ in range(5):
        box = await Sandbox.create()
        await box.run(["true"])
        commands = [
            asyncio.create_task(box.run(["sh", "-c", "sleep 0.02; echo x"])) for _ in range(20)
        ]
        await asyncio.sleep(random.uniform(0, 0.08))
        again = await Sandbox.attach(box.id)
        await asyncio.gather(box.close(), again.close())
        outcomes = await asyncio.wait_for(asyncio.gather(*commands, return_exceptions=True), 20)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, (InDoubtError, BoxGoneError)), outcome
            else:
                assert outcome.stdout == b"x\n"
        verify(box.trajectory)


@pytest.fixture
async def line(host: Home) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to the edge's socket."""
    await Sandbox.list()
    reader, writer = await asyncio.open_unix_connection(str(host.socket))
    yield reader, writer
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("over the limit", HEADER.pack(MAX_FRAME_BYTES + 1, 0)),
        ("of four gigabytes", HEADER.pack(0xFFFF_FFFF, 0xFFFF_FFFF)),
        ("with a wrong checksum", HEADER.pack(1, 0) + b"\x80"),
        ("that is no map", HEADER.pack(1, 0xA505_DF1B) + b"\x01"),
        ("that is no MessagePack", struct.pack("<II", 1, 0xA1B3_B2AA) + b"\xc1"),
    ],
)
async def test_a_forged_frame_ends_its_connection_and_nothing_else(
    line: tuple[asyncio.StreamReader, asyncio.StreamWriter], box: Sandbox, name: str, content: bytes
) -> None:
    reader, writer = line
    writer.write(pack({"id": 1, "do": "list"}))
    assert len(await reader.read(8)) == 8, "the control: a right one is answered"
    writer.write(content)
    rest = b"more"
    with contextlib.suppress(ConnectionResetError):
        while rest:
            rest = await asyncio.wait_for(reader.read(1 << 16), 10)
    assert (await box.run(["echo", "alive"])).text == "alive\n"


async def test_a_request_of_the_wrong_shape_is_answered_as_an_error(box: Sandbox) -> None:
    client = box._client
    assert client is not None
    for arguments in ({}, {"box": 5}, {"box": box.id, "key": 5, "job": 7}, {"box": box.id}):
        for do in ("run", "file", "resize", "fork", "stdin", "none-such"):
            with pytest.raises((SandboxError, UsageError)):
                await asyncio.wait_for(client.ask(do, **arguments), 10)
    assert (await box.run(["echo", "alive"])).text == "alive\n"


def test_no_bytes_crash_the_reader_of_frames() -> None:
    generator = random.Random(7)
    whole = pack({"t": "out", "data": bytes(50)})
    for _ in range(3000):
        data = bytearray(whole * 3)
        for _ in range(generator.randrange(4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        buffer = FrameBuffer()
        with contextlib.suppress(EdgeError):
            for message in buffer.feed(bytes(data)):
                assert isinstance(message, dict)
    assert len(FrameBuffer().feed(whole * 3)) == 3


async def test_an_agent_that_speaks_nonsense_loses_its_box_and_no_other(box: Sandbox) -> None:
    """The edge's side of the line to process 1, which a kernel exploit in a box might hold."""
    closed = asyncio.Event()
    messages: list[Any] = []
    link = Link(messages.append, closed.set)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
    theirs.sendall(pack({"t": "exit", "op": 1}))
    while not messages:
        await asyncio.sleep(0.01)
    assert not closed.is_set()
    theirs.sendall(b"\xff" * 64)
    await asyncio.wait_for(closed.wait(), 10)
    theirs.close()
    assert messages == [{"t": "exit", "op": 1}]
    assert (await box.run(["echo", "alive"])).text == "alive\n"


@needs_python
async def test_a_command_holds_no_line_but_its_own_streams(box: Sandbox) -> None:
    """What a command could write to process 1, the spawner or the edge, it would have to hold."""
    code = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])"
    assert (await attempt(box, code)).text == "[0, 1, 2]\n"
    frames = pack({"t": "exit", "op": 0, "code": 0}) * 3
    result = await box.run(["cat"], stdin=frames)
    assert result.stdout == frames, "bytes that look like a frame are output like any other"


async def test_secrets_of_the_edge_are_in_no_environment_of_a_box(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_edge(host.root)
    monkeypatch.setenv("BALEEN_SANDBOX_TOKEN", "token-of-the-edge")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-caller")
    async with await Sandbox.create() as box:
        seen = (await box.shell("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'")).text
        assert "PATH=" in seen
        assert "token-of-the-edge" not in seen
        assert "key-of-the-caller" not in seen
        assert "BALEEN" not in seen
    read = subprocess.run(
        [sys.executable, "-c", "import os; print(os.environ['OPENAI_API_KEY'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert read.stdout == "key-of-the-caller\n", "the control: children outside have it"
