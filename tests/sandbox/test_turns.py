"""Who gets short turns of the processor, and who does not."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import pytest

from baleen.sandbox import Sandbox
from baleen.sandbox.home import Home
from baleen.sandbox.turns import SHORT_NS, turn_ns

from .conftest import edge_pid, wait_until

pytestmark = pytest.mark.skipif(
    turn_ns() is None, reason="the kernel knows no turns of a length (before Linux 6.12)"
)


def _pid_of(argv: list[str]) -> int:
    """The host's number of the process that runs this command line."""
    wanted = "".join(f"{part}\0" for part in argv).encode()
    found: list[int] = []

    def is_there() -> bool:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "cmdline").read_bytes() == wanted:
                    found.append(int(folder.name))
            except OSError:
                continue  # it has just ended
        return bool(found)

    wait_until(is_there)
    return found[0]


async def test_the_edge_and_its_launcher_take_short_turns(box: Sandbox, host: Home) -> None:
    edge = edge_pid(host.root)
    assert edge is not None
    (launcher,) = Path(f"/proc/{edge}/task/{edge}/children").read_text().split()
    assert turn_ns(edge) == turn_ns(int(launcher)) == SHORT_NS


async def test_a_command_gets_the_turns_that_everybody_gets(box: Sandbox) -> None:
    argv = ["sleep", "31536.5"]
    await box.run(["sh", "-c", 'exec "$@" >/dev/null 2>&1 &', "sh", *argv])
    assert turn_ns(_pid_of(argv)) == turn_ns()


async def test_a_function_gets_the_turns_that_everybody_gets(host: Home) -> None:
    def own_turn(number: int) -> int:
        buffer = ctypes.create_string_buffer(48)
        ctypes.CDLL(None).syscall(number, 0, buffer, 48, 0)
        return int(struct.unpack_from("<Q", buffer.raw, 24)[0])

    number = {"x86_64": 315, "aarch64": 275}[os.uname().machine]
    async with await Sandbox.create(backend="function") as functions:
        assert await functions.call(own_turn, number) == turn_ns()
