"""What code in a box must not be able to do.

Each attempt is also made outside, where it succeeds or its means exist, so that a test can fail.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from baleen.sandbox import RunResult, Sandbox
from baleen.sandbox.home import Home

from .conftest import needs_privilege

PYTHON = "/usr/bin/python3"
needs_python = pytest.mark.skipif(
    not Path(PYTHON).exists(), reason="attempts in Python need /usr/bin/python3"
)

SYSCALL = """
    import ctypes, os, sys
    libc = ctypes.CDLL(None, use_errno=True)
    number, *arguments = map(int, sys.argv[1:])
    result = libc.syscall(number, *arguments)
    print(result, ctypes.get_errno())
"""

EPERM, ENOSYS = 1, 38


async def attempt(box: Sandbox, code: str, *arguments: str) -> RunResult:
    return await box.run([PYTHON, "-c", textwrap.dedent(code), *arguments])


def outside(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@needs_python
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("keyctl", 250),
        ("bpf", 321),
        ("userfaultfd", 323),
        ("io_uring_setup", 425),
        ("mount", 165),
        ("umount2", 166),
        ("fsopen", 430),
        ("open_tree", 428),
        ("setns", 308),
        ("perf_event_open", 298),
        ("kexec_load", 246),
        ("init_module", 175),
        ("open_by_handle_at", 304),
        ("settimeofday", 164),
        ("pidfd_getfd", 438),
        ("swapon", 167),
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers are x86-64's")
async def test_a_dangerous_system_call_is_refused_by_the_filter(
    box: Sandbox, name: str, number: int
) -> None:
    """Bad arguments make it fail anyway, but root outside never gets EPERM for them."""
    arguments = [str(number), "-1", "0", "0", "0", "0"]
    assert (await attempt(box, SYSCALL, *arguments)).text.split() == ["-1", str(EPERM)]
    if os.geteuid() == 0:
        assert outside(SYSCALL, *arguments).split()[1:] != [str(EPERM)], name


@needs_python
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers are x86-64's")
async def test_new_namespaces_cannot_be_made(box: Sandbox) -> None:
    code = "import ctypes, sys; print(ctypes.CDLL(None).unshare(int(sys.argv[1])))"
    for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x02000000):
        assert (await attempt(box, code, str(flag))).text == "-1\n"
        if os.geteuid() == 0:
            assert outside(code, str(flag)) == "0\n"
    assert (await attempt(box, SYSCALL, "435", "0", "0")).text.split() == ["-1", str(ENOSYS)]
    assert (await box.run(["unshare", "-U", "true"])).exit_code != 0
    assert subprocess.run(["unshare", "-U", "true"], check=False).returncode == 0


@needs_python
async def test_terminal_injection_and_xfs_controls_are_refused(box: Sandbox) -> None:
    code = """
        import fcntl, os, sys
        a, b = os.openpty()
        try:
            fcntl.ioctl(b, int(sys.argv[1]), b"x" * 64)
            print("allowed")
        except OSError as error:
            print(error.errno)
    """
    swap_extents, inject = str(0xC078_586D), str(0x5412)
    for request in (inject, swap_extents):
        assert (await attempt(box, code, request)).text == "1\n"
    assert outside(code, swap_extents) == "25\n"  # ENOTTY: the request reaches the driver


@needs_python
async def test_raw_sockets_and_exotic_families_are_refused(box: Sandbox) -> None:
    code = """
        import socket, sys
        try:
            socket.socket(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])).close()
            print("made")
        except OSError as error:
            print(error.errno)
    """
    for family, kind, protocol in ((2, 3, 1), (17, 3, 0), (38, 5, 0), (40, 1, 0)):
        said = (await attempt(box, code, str(family), str(kind), str(protocol))).text
        assert said in ("1\n", "13\n"), family
    if os.geteuid() == 0:
        assert outside(code, "2", "3", "1") == "made\n"


async def test_an_abstract_socket_of_the_host_is_out_of_reach(box: Sandbox) -> None:
    name = f"\0baleen-{os.getpid()}"
    connect = """
        import socket, sys
        socket.socket(socket.AF_UNIX).connect(chr(0) + sys.argv[1])
        print('in')
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        assert outside(connect, name[1:]) == "in\n"
        assert b"Connection refused" in (await attempt(box, connect, name[1:])).stderr


async def test_host_services_on_loopback_are_out_of_reach(box: Sandbox) -> None:
    connect = """
        import socket, sys
        socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2)
        print('in')
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert outside(connect, port) == "in\n"
        assert b"Connection refused" in (await attempt(box, connect, port)).stderr


async def test_the_edge_and_agent_sockets_are_not_in_the_box(box: Sandbox, host: Home) -> None:
    assert host.socket.exists()
    found = await box.run(["find", "/", "-xdev", "-type", "s"])
    assert found.stdout == b""
    assert (await box.run(["ls", str(host.root)])).exit_code != 0
    assert (await box.run(["cat", "/proc/net/unix"])).text.count("agent.sock") == 0


@needs_privilege
async def test_no_process_of_a_box_holds_the_launchers_line_to_the_edge(box: Sandbox) -> None:
    sleeper = asyncio.create_task(box.run(["sleep", "1"]))
    await asyncio.sleep(0.4)
    (row,) = await Sandbox.list()
    family = [row["pid"]]
    for pid in family:
        family += Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(family) == 4  # process 1, spawner, supervisor, sleep
    for pid in family[:3]:
        streams = [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)]
        assert {Path(stream).name for stream in streams} == {"null"}, pid
    await sleeper


async def test_process_one_cannot_be_traced_read_or_killed(box: Sandbox) -> None:
    for path in (
        "/proc/1/root",
        "/proc/1/exe",
        "/proc/1/fd",
        "/proc/1/environ",
        "/proc/1/mem",
        "/proc/1/maps",
    ):
        assert (await box.run(["sh", "-c", f"ls -l {path}/ || cat {path}"])).exit_code != 0, path
    await box.run(["kill", "-9", "1"])
    assert (await box.run(["echo", "alive"])).text == "alive\n"


@needs_privilege
async def test_kernel_knobs_are_read_only_or_hidden(box: Sandbox) -> None:
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/irq/default_smp_affinity",
        "/sys/power/state",
    ):
        assert os.access(path, os.W_OK), path
        result = await box.shell(f"cat {path} > /tmp/same; cat /tmp/same > {path}")
        assert b"Read-only" in result.stderr, path
    assert (await box.shell("echo 1 > /sys/fs/cgroup/release_agent")).exit_code != 0
    for name in ("kpagecgroup", "kpageflags", "kcore", "kallsyms", "timer_list"):
        assert (await box.run(["sh", "-c", f"head -c 1 /proc/{name} | wc -c"])).text == "0\n"
    assert Path("/proc/kallsyms").read_bytes()[:1] != b""


@needs_privilege
async def test_devices_cannot_be_made_or_used(box: Sandbox) -> None:
    assert (await box.shell("mknod /tmp/disk b 254 0")).exit_code != 0
    assert (await box.shell("mknod /dev/mem2 c 1 1")).exit_code != 0
    names = set((await box.run(["ls", "/dev"])).text.split())
    assert not {"mem", "kmsg", "kvm", "fuse", "vda", "sda"} & names


@needs_privilege
async def test_a_set_user_id_program_gains_nothing(box: Sandbox) -> None:
    await box.shell(
        "cp /usr/bin/id /usr/local/bin/rootid 2>/dev/null || cp /usr/bin/id /usr/bin/rootid"
    )
    await box.shell("chmod 4755 /usr/local/bin/rootid /usr/bin/rootid 2>/dev/null")
    result = await box.shell("$(command -v rootid) -u", user="1000")
    assert result.text == "1000\n"


@needs_privilege
async def test_root_of_the_box_is_nobody_on_the_host(box: Sandbox) -> None:
    sleeper = asyncio.create_task(box.run(["sleep", "3"]))
    await asyncio.sleep(0.5)
    (row,) = await Sandbox.list()
    status = Path(f"/proc/{row['pid']}/status").read_text()
    uid = int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1])
    assert uid >= 0x7000_0000
    # Not dumpable: the kernel gives its files in /proc to root, out of the box's reach.
    assert Path(f"/proc/{row['pid']}/environ").stat().st_uid == 0
    await sleeper


@needs_privilege
async def test_two_boxes_have_different_ids_on_the_host(host: Home) -> None:
    async with await Sandbox.create(), await Sandbox.create():
        pids = [row["pid"] for row in await Sandbox.list()]
        maps = {Path(f"/proc/{pid}/uid_map").read_text().split()[1] for pid in pids}
        assert len(maps) == 2


async def test_opened_files_cannot_be_exhausted_beyond_the_box(box: Sandbox) -> None:
    code = """
        import os
        try:
            while True: os.dup(0)
        except OSError as error:
            print(error.errno)
    """
    assert (await attempt(box, code)).text.split()[0] == "24"
    assert (await box.run(["true"])).exit_code == 0


async def test_the_clock_and_host_name_of_the_host_stay(box: Sandbox) -> None:
    name = socket.gethostname()
    assert (await box.run(["date", "-s", "2001-01-01"])).exit_code != 0
    assert (await box.run(["hostname", "evil"])).exit_code != 0
    assert socket.gethostname() == name


async def test_a_stopped_spawner_costs_one_command_and_not_the_box(box: Sandbox) -> None:
    await box.run(["kill", "-STOP", "2"])
    with pytest.raises(Exception, match="not started"):
        await box.run(["echo", "lost"], timeout_s=1)
    assert (await box.run(["echo", "back"], timeout_s=20)).text == "back\n"


async def test_a_stopped_waiting_supervisor_costs_one_command_and_not_the_box(box: Sandbox) -> None:
    for _ in range(4):
        await box.run(["true"])
    await box.shell("sleep 0.1; kill -STOP $(pgrep -P 2 | grep -vx $PPID)")
    with pytest.raises(Exception, match="not started"):
        await box.run(["echo", "lost"], timeout_s=1)
    assert (await box.run(["echo", "back"], timeout_s=20)).text == "back\n"
    left = await box.run(["ps", "-A", "-o", "stat="])
    assert "T" not in left.text, "it ended with its spawner"
