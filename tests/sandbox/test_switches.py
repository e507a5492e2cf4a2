"""What boxes do without the features that a kernel may lack: each turned off, one by one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import fields

import pytest

from baleen.sandbox import HostError, Sandbox
from baleen.sandbox.backends import probe
from baleen.sandbox.doctor import checks
from baleen.sandbox.home import Home
from baleen.sandbox.switches import Switches

from .conftest import kill_edge, needs_privilege
from .test_security import PYTHON, needs_python, outside

needs_landlock = pytest.mark.skipif(probe().get("landlock") != "ok", reason="needs Landlock")

ATTEMPTS = """
    import json, os, stat
    done = []
    try:
        os.mknod("/dev/shm/whiteout", stat.S_IFCHR | 0o600, 0)
        done.append("device")
    except PermissionError:
        pass
    try:
        os.kill(1, 0)
        done.append("signal")
    except PermissionError:
        pass
    if os.path.exists("/tmp/a/again"):  # an attempt before
        os.unlink("/tmp/a/again")
    os.makedirs("/tmp/a", exist_ok=True), os.makedirs("/tmp/b", exist_ok=True)
    open("/tmp/a/file", "w").close()
    os.rename("/tmp/a/file", "/tmp/b/file")
    os.link("/tmp/b/file", "/tmp/a/again")
    print(json.dumps(done))
"""


async def attempts(box: Sandbox) -> list[str]:
    result = await box.run([PYTHON, "-c", textwrap.dedent(ATTEMPTS)])
    assert result.exit_code == 0, result.stderr
    done: list[str] = json.loads(result.stdout)
    return done


def left_by_landlock() -> list[str]:
    """What this kernel's Landlock does not refuse: before version 6 it knows no signals."""
    version = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"
    return [] if int(outside(version)) >= 6 else ["signal"]


@needs_landlock
@needs_python
async def test_behind_landlock_root_signals_nothing_outside_and_makes_no_device(
    box: Sandbox,
) -> None:
    assert box.capabilities()["landlock"] is True
    assert await attempts(box) == left_by_landlock()


@needs_landlock
@needs_python
async def test_commands_behind_landlock_still_signal_one_another(box: Sandbox) -> None:
    first = await box.shell("sleep 60 >/dev/null 2>&1 & echo $!")
    killed = await box.run(["kill", first.text.strip()])
    assert killed.exit_code == 0, killed.stderr


@needs_landlock
@needs_python
async def test_a_spawner_that_was_killed_comes_back_behind_landlock(box: Sandbox) -> None:
    """Its replacement is a child of process 1, which itself is outside."""
    spawner = int((await box.run(["pgrep", "-o", "-P", "1"])).text)
    await box.run(["kill", "-9", str(spawner)])
    for _ in range(3):
        try:
            assert await attempts(box) == left_by_landlock()
            return
        except Exception as error:  # the command that was just beginning may be lost with it
            lost = error
    raise lost


@needs_python
async def test_without_landlock_boxes_run_and_say_so(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: what Landlock refuses would succeed."""
    monkeypatch.setenv("BALEEN_SANDBOX_LANDLOCK", "off")
    async with await Sandbox.create() as box:
        assert box.capabilities()["landlock"] is False
        assert await attempts(box) == ["device", "signal"]
        kill_edge(host.root)
        again = await Sandbox.attach(box.id)
        assert again.capabilities()["landlock"] is False
        await again.detach()


@needs_privilege
async def test_without_idmapped_mounts_programs_run_and_their_files_are_nobodys(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Sandbox.create() as box:
        assert box.capabilities()["own_ids"] is True
        assert (await box.run(["stat", "-c", "%u", "/usr/bin/env"])).text == "0\n"
        assert (await box.run(["chmod", "700", "/usr/bin/env"])).exit_code == 0
    kill_edge(host.root)
    monkeypatch.setenv("BALEEN_SANDBOX_IDMAP", "off")
    async with await Sandbox.create() as box:
        assert box.capabilities()["own_ids"] is False
        assert (await box.run(["stat", "-c", "%u", "/usr/bin/env"])).text == "65534\n"
        assert (await box.shell("echo x > /tmp/own && cat /tmp/own")).text == "x\n"
        assert (await box.run(["chmod", "700", "/usr/bin/env"])).exit_code != 0


@needs_privilege
async def test_without_control_groups_boxes_run_and_say_that_nothing_is_limited(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALEEN_SANDBOX_LIMITS", "off")
    async with await Sandbox.create(memory_mb=32) as box:
        assert str(box.capabilities()["limits"]).startswith("no limits")
        groups = (await box.shell("cat /proc/self/cgroup")).text
        assert "baleen" not in groups
        used = await box.shell("head -c 48000000 /dev/zero | tail -c 47000000 | wc -c")
        assert used.text == "47000000\n"


@needs_privilege
async def test_without_memory_box_folders_lie_on_disk(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALEEN_SANDBOX_VOLATILE", "off")
    async with await Sandbox.create() as box:
        assert not host.boxes.is_symlink()
        assert (host.boxes / box.id / "agent.sock").is_socket()
        kill_edge(host.root)
        assert (await box.run(["echo", "on"])).text == "on\n"


async def test_an_unknown_value_of_a_switch_is_refused_by_name(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for field in fields(Switches):
        name = f"BALEEN_SANDBOX_{field.name.upper()}"
        monkeypatch.setenv(name, "maybe")
        with pytest.raises(HostError, match=f"{name}='maybe'"):
            await Sandbox.create()
        (used,) = (check for check in checks() if check.name == "will use")
        assert (used.ok, name in used.detail) == (False, True)
        monkeypatch.delenv(name)


def test_the_doctor_says_what_each_switch_turns_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def used() -> str:
        return next(check.detail for check in checks() if check.name == "will use")

    whole = used()
    for field in fields(Switches):
        monkeypatch.setenv(f"BALEEN_SANDBOX_{field.name.upper()}", "off")
        if probe()["privileged"] == "ok":
            assert used() != whole, field.name
        monkeypatch.delenv(f"BALEEN_SANDBOX_{field.name.upper()}")
    monkeypatch.setenv("BALEEN_IMAGES_MOUNT", "directory")
    assert "image layers by directory" in used()


REFUSED = """
from baleen.sandbox.backends import check_offered
from baleen.sandbox.spec import BoxSpec
try:
    check_offered(BoxSpec())
except Exception as error:
    print(type(error).__name__, error.message, error.remedy)
"""


@pytest.mark.parametrize(("limit", "refused"), [("0", True), ("1000", False)])
def test_where_user_namespaces_are_forbidden_the_refusal_names_them(
    limit: str, refused: bool
) -> None:
    """In a namespace of its own whose limit on further ones is set, so nothing else is touched."""
    line = f'echo {limit} > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", line, sys.executable, REFUSED],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"this user makes no namespaces at all: {done.stderr.strip()}")
    assert ("HostError" in done.stdout) == refused, done.stdout
    if refused:
        assert "namespaces:" in done.stdout
        assert "allow unprivileged user namespaces" in done.stdout
