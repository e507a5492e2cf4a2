"""A deployment for SWE-ReX: its runtime speaks to a box directly, no server runs inside.

    deployment = BaleenDeployment(image="swe:1")
    await deployment.start()
    await deployment.runtime.create_session(CreateBashSessionRequest())

A session is one bash that lives on between commands. A command that runs out of time is killed with
all it started, and the session goes on. Interactive programs in a session are not offered.
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from pathlib import Path
from typing import Any

from swerex.deployment.abstract import AbstractDeployment
from swerex.deployment.hooks.abstract import CombinedDeploymentHook, DeploymentHook
from swerex.exceptions import (
    BashIncorrectSyntaxError,
    CommandTimeoutError,
    DeploymentNotStartedError,
    NonZeroExitCodeError,
    SessionDoesNotExistError,
    SessionExistsError,
    SessionNotInitializedError,
)
from swerex.runtime.abstract import (
    AbstractRuntime,
    BashAction,
    BashInterruptAction,
    BashObservation,
    CloseBashSessionResponse,
    CloseResponse,
    Command,
    CommandResponse,
    CreateBashSessionRequest,
    CreateBashSessionResponse,
    IsAliveResponse,
    ReadFileRequest,
    ReadFileResponse,
    UploadRequest,
    UploadResponse,
    WriteFileRequest,
    WriteFileResponse,
)
from swerex.utils.log import get_logger

from baleen.errors import SandboxError

from ..process import Process
from ..sandbox import Sandbox
from ..spec import HARD_MAX_OUTPUT_BYTES
from .options import BoxOptions

KILL_WAIT_S = 5.0
STARTUP_TIMEOUT_S = 10.0


class _Session:
    """One bash with open input: commands go in encoded, their ends come out marked."""

    def __init__(self, box: Sandbox) -> None:
        self._box = box
        self._mark = uuid.uuid4().hex
        self._process: Process | None = None
        self._output = b""
        self._arrived = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._pid = 0
        self._is_busy = False

    async def start(self, startup_source: list[str], timeout_s: float) -> str:
        """Starts bash and sources what is wanted; returns what that printed."""
        self._process = self._box.stream(
            ["bash", "--noprofile", "--norc"],
            stdin_open=True,
            max_output_bytes=HARD_MAX_OUTPUT_BYTES,
        )
        self._pump = asyncio.create_task(self._read())
        await self._process.write("exec 2>&1; echo $$\n")
        self._pid = int((await self._until(b"\n", timeout_s))[0])
        output = ""
        for path in startup_source:
            output += (await self.run(f"source {path}", timeout_s))[0]
        return output

    async def _read(self) -> None:
        assert self._process is not None
        try:
            async for piece in self._process:
                self._output += piece.data
                self._arrived.set()
        finally:
            self._process = None
            self._arrived.set()

    async def _until(self, end: bytes, timeout_s: float | None) -> tuple[bytes, bytes]:
        """The output before a mark, and what follows it up to the line's end."""
        async with asyncio.timeout(timeout_s):
            while True:
                before, found, rest = self._output.partition(end)
                if found and (b"\n" in rest or end.endswith(b"\n")):
                    tail, _, self._output = (
                        (b"", b"", rest) if end.endswith(b"\n") else rest.partition(b"\n")
                    )
                    return before, tail
                if self._process is None:
                    raise SessionNotInitializedError("the session's shell has ended")
                self._arrived.clear()
                await self._arrived.wait()

    async def run(self, command: str, timeout_s: float | None) -> tuple[str, int]:
        """Runs a command in the shell itself; returns output and exit code.

        Raises:
            TimeoutError: it was killed with all it had started; the shell goes on.
        """
        if self._process is None:
            raise SessionNotInitializedError("the session's shell has ended")
        packed = base64.b64encode(command.encode()).decode()
        line = (
            f'{{ eval "$(printf %s {packed} | base64 -d)"; }} </dev/null; '
            f"printf '\\n{self._mark} %s\\n' \"$?\"\n"
        )
        self._output, self._is_busy = b"", True
        await self._process.write(line)
        try:
            output, code = await self._until(f"\n{self._mark} ".encode(), timeout_s)
        except TimeoutError:
            partial = self._output
            await self.interrupt()
            raise TimeoutError(partial.decode("utf-8", "replace")) from None
        self._is_busy = False
        return output.decode("utf-8", "replace"), int(code)

    async def interrupt(self) -> str:
        """Kills what the shell is running, if anything; the shell itself stays."""
        if not self._is_busy:
            return ""
        kill = (
            "tree() { for c in $(cat /proc/$1/task/*/children 2>/dev/null); do tree $c; "
            "echo $c; done; }; kill -9 $(tree $0) 2>/dev/null"
        )
        await self._box.run(["sh", "-c", kill, str(self._pid)], user="root")
        output, _ = await self._until(f"\n{self._mark} ".encode(), KILL_WAIT_S)
        self._is_busy = False
        return output.decode("utf-8", "replace")

    async def close(self) -> None:
        if self._process is not None:
            await self._process.send_signal(9)
        if self._pump is not None:
            await asyncio.gather(self._pump, return_exceptions=True)


class BaleenRuntime(AbstractRuntime):
    """Commands, sessions and files of one box."""

    def __init__(self, box: Sandbox, logger: Any = None) -> None:
        self.logger = logger or get_logger("rex-runtime")
        self._box = box
        self._sessions: dict[str, _Session] = {}

    async def is_alive(self, *, timeout: float | None = None) -> IsAliveResponse:
        try:
            await self._box.run(["true"], timeout_s=timeout)
        except SandboxError as error:
            return IsAliveResponse(is_alive=False, message=str(error))
        return IsAliveResponse(is_alive=True)

    async def create_session(self, request: CreateBashSessionRequest) -> CreateBashSessionResponse:
        if request.session in self._sessions:
            raise SessionExistsError(f"session {request.session} already exists")
        session = _Session(self._box)
        output = await session.start(
            request.startup_source, max(request.startup_timeout, STARTUP_TIMEOUT_S)
        )
        self._sessions[request.session] = session
        return CreateBashSessionResponse(output=output)

    def _session(self, name: str) -> _Session:
        if name not in self._sessions:
            raise SessionDoesNotExistError(f"session {name!r} does not exist")
        return self._sessions[name]

    async def run_in_session(self, action: BashAction | BashInterruptAction) -> BashObservation:
        session = self._session(action.session)
        if isinstance(action, BashInterruptAction):
            return BashObservation(output=await session.interrupt())
        if action.is_interactive_command or action.is_interactive_quit:
            raise NotImplementedError("interactive programs are not offered in a session of a box")
        await self._check_syntax(action.command)
        try:
            output, code = await session.run(action.command, action.timeout)
        except TimeoutError as error:
            text = f"timeout after {action.timeout} seconds while running {action.command!r}"
            raise CommandTimeoutError(f"{text}\n{error}") from None
        if action.check == "raise" and code != 0:
            text = f"Command {action.command!r} failed with exit code {code}. Output:\n{output}"
            raise NonZeroExitCodeError(f"{action.error_msg}: {text}" if action.error_msg else text)
        return BashObservation(output=output, exit_code=None if action.check == "ignore" else code)

    async def _check_syntax(self, command: str) -> None:
        checked = await self._box.run(["bash", "-n"], stdin=command)
        if checked.exit_code != 0:
            text = checked.stderr.decode("utf-8", "replace")
            raise BashIncorrectSyntaxError(
                f"{command!r} is not bash: {text}",
                extra_info={"bash_stdout": "", "bash_stderr": text},
            )

    async def close_session(self, request: Any) -> CloseBashSessionResponse:
        session = self._session(request.session)
        del self._sessions[request.session]
        await session.close()
        return CloseBashSessionResponse()

    async def execute(self, command: Command) -> CommandResponse:
        words = command.command
        if command.shell:
            line = words if isinstance(words, str) else " ".join(words)
            argv = ["/bin/sh", "-c", line]
        else:
            argv = [words] if isinstance(words, str) else list(words)
        if command.merge_output_streams:
            argv = ["/bin/sh", "-c", 'exec "$@" 2>&1', "sh", *argv]
        result = await self._box.run(
            argv, timeout_s=command.timeout, env=command.env, cwd=command.cwd
        )
        if result.timed_out:
            raise CommandTimeoutError(f"timeout ({command.timeout}s) exceeded: {argv}")
        stderr = result.stderr.decode("utf-8", "replace")
        if command.check and result.exit_code != 0:
            text = f"Command {argv} failed with exit code {result.exit_code}: {result.text}{stderr}"
            raise NonZeroExitCodeError(f"{command.error_msg} {text}".strip())
        return CommandResponse(stdout=result.text, stderr=stderr, exit_code=result.exit_code)

    async def read_file(self, request: ReadFileRequest) -> ReadFileResponse:
        data = await self._files("read", request.path)
        text = data.decode(request.encoding or "utf-8", request.errors or "strict")
        return ReadFileResponse(content=text)

    async def _files(self, do: str, path: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._box.files, do)(path, *arguments)
        except OSError as error:
            if error.errno == 2:
                raise FileNotFoundError(2, "No such file or directory", path) from error
            raise

    async def write_file(self, request: WriteFileRequest) -> WriteFileResponse:
        await self._files("write", request.path, request.content)
        return WriteFileResponse()

    async def upload(self, request: UploadRequest) -> UploadResponse:
        source = Path(request.source_path)
        if not source.exists():
            raise FileNotFoundError(2, "No such file or directory", str(source))
        await self._box.files.upload(source, request.target_path)
        return UploadResponse()

    async def close(self) -> CloseResponse:
        sessions, self._sessions = self._sessions, {}
        await asyncio.gather(*(session.close() for session in sessions.values()))
        return CloseResponse()


class BaleenDeployment(AbstractDeployment):
    """Makes a box, holds its runtime, ends it."""

    def __init__(self, *, logger: Any = None, **options: Any) -> None:
        self.logger = logger or get_logger("rex-deploy")
        self._options = BoxOptions.from_data(options)
        self._hooks = CombinedDeploymentHook()
        self._box: Sandbox | None = None
        self._runtime: BaleenRuntime | None = None

    def add_hook(self, hook: DeploymentHook) -> None:
        self._hooks.add_hook(hook)

    async def is_alive(self, *, timeout: float | None = None) -> IsAliveResponse:
        if self._runtime is None:
            raise DeploymentNotStartedError
        return await self._runtime.is_alive(timeout=timeout)

    async def start(self) -> None:
        """Makes the box; a second start does nothing."""
        if self._box is None:
            self._hooks.on_custom_step("Making a box")
            self._box = await Sandbox.create(**self._options.arguments())
            self._runtime = BaleenRuntime(self._box, self.logger)

    async def stop(self) -> None:
        """Ends the box and everything in it; a second stop does nothing."""
        if self._box is not None and self._runtime is not None:
            await self._runtime.close()
            box, self._box, self._runtime = self._box, None, None
            await box.close()

    @property
    def runtime(self) -> BaleenRuntime:
        if self._runtime is None:
            raise DeploymentNotStartedError
        return self._runtime
