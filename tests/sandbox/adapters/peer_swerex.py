"""SWE-ReX's own types and errors, over a box."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from swerex.exceptions import (
    BashIncorrectSyntaxError,
    CommandTimeoutError,
    DeploymentNotStartedError,
    NonZeroExitCodeError,
    SessionDoesNotExistError,
    SessionExistsError,
)
from swerex.runtime.abstract import (
    AbstractRuntime,
    BashAction,
    BashInterruptAction,
    CloseBashSessionRequest,
    Command,
    CreateBashSessionRequest,
    ReadFileRequest,
    UploadRequest,
    WriteFileRequest,
)

from baleen.sandbox.adapters.swe_rex import BaleenDeployment


@pytest.fixture
async def runtime() -> AsyncIterator[AbstractRuntime]:
    deployment = BaleenDeployment()
    await deployment.start()
    await deployment.start()
    assert await deployment.is_alive()
    yield deployment.runtime
    await deployment.stop()
    await deployment.stop()
    with pytest.raises(DeploymentNotStartedError):
        await deployment.is_alive()


async def test_commands_run_as_subprocess_would(runtime: AbstractRuntime) -> None:
    done = await runtime.execute(Command(command=["echo", "a  b"], cwd="/usr", env={"X": "1"}))
    assert (done.stdout, done.stderr, done.exit_code) == ("a  b\n", "", 0)
    line = "echo $X; echo e >&2; exit 4"
    done = await runtime.execute(Command(command=line, shell=True, env={"X": "1"}))
    assert (done.stdout, done.stderr, done.exit_code) == ("1\n", "e\n", 4)
    done = await runtime.execute(Command(command=line, shell=True, merge_output_streams=True))
    assert done.stdout == "\ne\n"
    with pytest.raises(NonZeroExitCodeError, match="mine"):
        await runtime.execute(Command(command=["false"], check=True, error_msg="mine"))
    with pytest.raises(CommandTimeoutError):
        await runtime.execute(Command(command=["sleep", "60"], timeout=0.3))


async def test_a_session_keeps_its_state(runtime: AbstractRuntime) -> None:
    await runtime.create_session(CreateBashSessionRequest())
    for command in ("cd /usr", "export X='a b'", "f() { echo in f; }"):
        assert (await runtime.run_in_session(BashAction(command=command))).exit_code == 0
    done = await runtime.run_in_session(BashAction(command="pwd; echo $X; f; echo err >&2"))
    assert done.output == "/usr\na b\nin f\nerr\n"
    with pytest.raises(NonZeroExitCodeError):
        await runtime.run_in_session(BashAction(command="(exit 7)"))
    silent = BashAction(command="(exit 7)", check="silent")
    assert (await runtime.run_in_session(silent)).exit_code == 7
    ignored = BashAction(command="(exit 7)", check="ignore")
    assert (await runtime.run_in_session(ignored)).exit_code is None
    text = "cat <<'X'\n$HOME `id` \"q\"\nX\nprintf no-newline"
    done = await runtime.run_in_session(BashAction(command=text))
    assert done.output == '$HOME `id` "q"\nno-newline'


async def test_a_stuck_command_is_killed_and_the_session_lives(runtime: AbstractRuntime) -> None:
    await runtime.create_session(CreateBashSessionRequest())
    await runtime.run_in_session(BashAction(command="X=kept"))
    for command in ("sleep 60", "cat", "(sleep 60 & sleep 60)", "bash -c 'sleep 60; :'"):
        if command == "cat":
            continue  # input is empty, so it ends at once
        began = time.monotonic()
        with pytest.raises(CommandTimeoutError):
            await runtime.run_in_session(BashAction(command=command, timeout=0.3))
        assert time.monotonic() - began < 5
        done = await runtime.run_in_session(BashAction(command="echo $X"))
        assert done.output == "kept\n"
    left = await runtime.execute(Command(command="cat /proc/*/cmdline | tr '\\0' ' '", shell=True))
    assert "sleep 60" not in left.stdout


async def test_sessions_are_apart_and_named(runtime: AbstractRuntime) -> None:
    for name in ("one", "two"):
        await runtime.create_session(CreateBashSessionRequest(session=name))
        await runtime.run_in_session(BashAction(command=f"X={name}", session=name))
    for name in ("one", "two"):
        done = await runtime.run_in_session(BashAction(command="echo $X", session=name))
        assert done.output == f"{name}\n"
    with pytest.raises(SessionExistsError):
        await runtime.create_session(CreateBashSessionRequest(session="one"))
    await runtime.close_session(CloseBashSessionRequest(session="one"))
    with pytest.raises(SessionDoesNotExistError):
        await runtime.run_in_session(BashAction(command="true", session="one"))


async def test_startup_files_are_sourced(runtime: AbstractRuntime) -> None:
    await runtime.write_file(WriteFileRequest(path="/root/rc", content="Y=sourced; echo hello\n"))
    made = await runtime.create_session(CreateBashSessionRequest(startup_source=["/root/rc"]))
    assert "hello" in made.output
    assert (await runtime.run_in_session(BashAction(command="echo $Y"))).output == "sourced\n"


async def test_bad_syntax_is_refused_and_harms_nothing(runtime: AbstractRuntime) -> None:
    await runtime.create_session(CreateBashSessionRequest())
    with pytest.raises(BashIncorrectSyntaxError):
        await runtime.run_in_session(BashAction(command="if then 'unclosed"))
    assert (await runtime.run_in_session(BashAction(command="echo ok"))).output == "ok\n"
    assert (await runtime.run_in_session(BashInterruptAction())).output == ""
    assert (await runtime.run_in_session(BashAction(command="echo ok"))).output == "ok\n"


async def test_files_travel(runtime: AbstractRuntime, tmp_path: Path) -> None:
    await runtime.write_file(WriteFileRequest(path="/w/ä", content="✓\r\n"))
    assert (await runtime.read_file(ReadFileRequest(path="/w/ä"))).content == "✓\r\n"
    with pytest.raises(FileNotFoundError):
        await runtime.read_file(ReadFileRequest(path="/absent"))
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_text("deep")
    await runtime.upload(UploadRequest(source_path=str(tmp_path / "d"), target_path="/up"))
    assert (await runtime.read_file(ReadFileRequest(path="/up/e/f"))).content == "deep"


async def test_other_images_and_unknown_options() -> None:
    with pytest.raises(ValueError, match="imag"):
        BaleenDeployment(imag="x")
    with pytest.raises(DeploymentNotStartedError):
        _ = BaleenDeployment().runtime
