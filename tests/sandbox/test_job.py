"""What a caller gets wrong is said before anything runs, and nothing that he asks is dropped."""

from __future__ import annotations

import asyncio
import math
import signal
from pathlib import Path
from typing import Any

import pytest

from baleen.errors import UsageError
from baleen.sandbox import Sandbox
from baleen.sandbox.job import make_job
from baleen.sandbox.spec import HARD_MAX_COMMAND_BYTES, HARD_MAX_INPUT_BYTES

from .conftest import needs_privilege

DEFAULTS: dict[str, Any] = {
    "timeout_s": 30,
    "cwd": None,
    "env": None,
    "stdin": None,
    "user": None,
    "max_output_bytes": 10,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("argv", "ls -l"),
        ("argv", []),
        ("argv", [""]),
        ("argv", ["echo", 5]),
        ("argv", ["echo", "a\0b"]),
        ("argv", ["echo", "\ud800"]),
        ("argv", 5),
        ("env", {"A": 5}),
        ("env", {"A": None}),
        ("env", {"A=B": "x"}),
        ("env", {"": "x"}),
        ("env", {"A": "x\0"}),
        ("cwd", 5),
        ("stdin", 5),
        ("stdin", bytes(HARD_MAX_INPUT_BYTES + 1)),
        ("user", 1.5),
        ("user", True),
        ("timeout_s", 0),
        ("timeout_s", -1),
        ("timeout_s", "5"),
        ("timeout_s", math.nan),
        ("max_output_bytes", -1),
        ("max_output_bytes", 1e6),
        ("max_output_bytes", 1 << 40),
    ],
)
def test_an_argument_that_cannot_be_right_is_named(name: str, value: Any) -> None:
    arguments = {"argv": ["true"], **DEFAULTS, name: value}
    with pytest.raises(UsageError, match=name):
        make_job(arguments.pop("argv"), **arguments)


def test_what_is_right_travels_as_it_was_meant() -> None:
    given = {**DEFAULTS, "user": 7, "cwd": Path("/srv"), "stdin": bytearray(b"x"), "env": {"A": ""}}
    job = make_job((Path("/bin/echo"), "ä", b"\xff", "\udcff", ""), **given)
    assert job["argv"] == ["/bin/echo", "ä", b"\xff", b"\xff", ""]
    assert (job["user"], job["cwd"], job["stdin"], job["env"]) == ("7", "/srv", b"x", {"A": ""})
    assert make_job(["true"], **{**DEFAULTS, "timeout_s": math.inf})["timeout_ms"] is None
    assert make_job(["true"], **{**DEFAULTS, "timeout_s": 1e-9})["timeout_ms"] == 1


async def test_a_number_is_a_user_too_and_never_root_instead(box: Sandbox) -> None:
    """One that is not looked at would leave the command to run as root."""
    result = await box.run(["id", "-u"], user=1000)
    if box.capabilities()["privileged"]:
        assert result.text == "1000\n"
    else:
        assert result.exit_code == 126


@needs_privilege
async def test_a_group_is_given_by_name_or_number(box: Sandbox) -> None:
    for user, ids in (("user:user", "1000 1000"), ("0:user", "0 1000"), ("nobody:7", "65534 7")):
        assert (await box.shell("echo $(id -u) $(id -g)", user=user)).text == f"{ids}\n"
    unknown = await box.run(["true"], user="root:pod")
    assert unknown.exit_code == 126
    assert b"pod" in unknown.stderr


async def test_the_largest_input_passes_and_a_larger_command_harms_no_box(box: Sandbox) -> None:
    data = bytes(HARD_MAX_INPUT_BYTES)
    assert (await box.run(["wc", "-c"], stdin=data)).text == f"{len(data)}\n"
    job = {"argv": ["wc", "-c"], "env": {}, "stdin": bytes(HARD_MAX_COMMAND_BYTES)}
    with pytest.raises(UsageError, match="over the limit"):  # past the check of the SDK
        await box._ask("run", key="large", job=job)
    assert (await box.run(["echo", "alive"])).text == "alive\n"


async def test_input_of_any_length_is_fed_piece_by_piece(box: Sandbox) -> None:
    process = box.stream(["wc", "-c"], stdin_open=True)
    await process.write(bytes(40 << 20))
    await process.write(b"", eof=True)
    assert (await process.wait()).text == f"{40 << 20}\n"


async def test_a_window_and_a_signal_that_cannot_be_are_refused_and_harm_no_box(
    box: Sandbox,
) -> None:
    shell = box.pty(["sleep", "60"])
    waiting = asyncio.create_task(shell.wait())
    for rows, columns in ((0, 80), (-1, 80), (24, 1 << 16), ("24", 80)):
        with pytest.raises(UsageError, match="window"):
            await shell.resize(rows, columns)  # type: ignore[arg-type]
    for number in (0, -9, 9999, "TERM", True):
        with pytest.raises(UsageError, match="signal"):
            await shell.send_signal(number)  # type: ignore[arg-type]
    for number in (-1, -33, 1 << 31, -(1 << 40)):  # past the check of the SDK
        await box._ask("resize", key=shell._key, rows=number, columns=number)
        await box._ask("signal", key=shell._key, signal=number)
    await shell.send_signal(signal.SIGKILL)
    assert (await waiting).exit_code == 137
    assert (await box.run(["echo", "alive"])).text == "alive\n"


async def test_thousands_of_variables_arrive_and_too_many_are_said_to_be(box: Sandbox) -> None:
    many = {f"V{number}": "x" * 20 for number in range(5000)}
    assert (await box.shell("env | grep -c ^V", env=many)).text == "5000\n"
    longer = {f"V{number}": "x" * 200 for number in range(20_000)}
    result = await box.run(["true"], env=longer)
    assert result.exit_code == 126
    assert b"argument list too long" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"cpu": "2"},
        {"cpu": True},
        {"memory_mb": math.nan},
        {"memory_mb": 512.5},
        {"pids": 1 << 40},
        {"ttl_idle_s": -1},
        {"labels": {"a": 1}},
        {"labels": ["a"]},
        {"mounts": ["/etc:/x"]},
        {"mounts": [("/etc",)]},
        {"network": ["example.org:443"]},
    ],
)
async def test_a_box_that_cannot_be_right_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).rstrip("s")):
        await Sandbox.create(**options)
