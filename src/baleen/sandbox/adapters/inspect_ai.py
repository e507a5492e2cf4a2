"""The sandbox provider ``baleen`` of inspect_ai.

    Task(..., sandbox=("baleen", "Dockerfile"))        # built in boxes
    Task(..., sandbox=SandboxEnvironmentSpec("baleen", BaleenConfig(image="swe:1", user="user")))

Installed beside inspect_ai it registers itself (entry point ``inspect_ai``). Files are read and
written with the rights of the sandbox's user. Commands are never run again after a timeout: what a
command has already done cannot be known.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal, overload

from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxConnection,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    sandboxenv,
)
from inspect_ai.util._sandbox.environment import SandboxUnavailableError
from pydantic import BaseModel, ConfigDict

from baleen.errors import SandboxError

from ..home import Home
from ..images.dockerfile.builder import build
from ..sandbox import Sandbox
from ..spec import HARD_MAX_OUTPUT_BYTES, RunResult
from .options import BoxOptions

MAX_STDIN_BYTES = 8 << 20
"""Longer input goes through a file of the box."""

NOT_RUNNABLE = 126
_LOOK = (
    'if [ -d "$1" ]; then exit 21; elif [ ! -e "$1" ]; then exit 2;'
    ' elif [ ! -r "$1" ]; then exit 13; fi'
)
_PREPARE = (
    'if [ -d "$1" ]; then exit 21; elif [ -e "$1" ] && [ ! -w "$1" ]; then exit 13; fi;'
    ' mkdir -p "$(dirname "$1")" || exit 13'
)
_ERRORS = {
    2: (FileNotFoundError, "no such file"),
    13: (PermissionError, "permission denied"),
    21: (IsADirectoryError, "is a directory"),
}


class BaleenConfig(BaseModel):
    """Settings of a sandbox; what it does not name itself goes to the box."""

    model_config = ConfigDict(extra="allow", frozen=True)

    image: str = "host"
    user: str | None = None
    """Who commands and files belong to; by default the image's user."""
    workdir: str | None = None
    """Where relative paths begin; by default the image's folder, or ``/workspace``."""


@sandboxenv(name="baleen")
class BaleenSandboxEnvironment(SandboxEnvironment):
    """One box of a sample."""

    def __init__(self, box: Sandbox, user: str | None, workdir: str) -> None:
        super().__init__()
        self._box = box
        self._user = user
        self._workdir = workdir

    @classmethod
    def config_files(cls) -> list[str]:
        return ["Dockerfile"]

    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> BaseModel:
        return BaleenConfig(**config)

    @classmethod
    async def sample_init(
        cls, task_name: str, config: Any, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        settings = config if isinstance(config, BaleenConfig) else await _from_text(config)
        extra = dict(settings.model_extra or {})
        options = BoxOptions.from_data(
            {"image": settings.image, "job": f"inspect:{task_name}", **extra}
        )
        box = await Sandbox.create(**options.arguments())
        workdir = settings.workdir or box.config.workdir or "/workspace"
        make = 'mkdir -p "$1" && { [ -z "$2" ] || chown "$2" "$1"; }'
        argv = ["/bin/sh", "-c", make, "sh", workdir, settings.user or ""]
        made = await box.run(argv, user="root", cwd="/")
        if made.exit_code != 0:
            await box.close()
            raise SandboxUnavailableError(f"cannot make {workdir}: {made.stderr!r}")
        return {"default": cls(box, settings.user, workdir)}

    @classmethod
    async def sample_cleanup(
        cls,
        task_name: str,
        config: Any,
        environments: dict[str, SandboxEnvironment],
        interrupted: bool,
    ) -> None:
        for environment in environments.values():
            await environment.as_type(BaleenSandboxEnvironment)._box.close()

    @classmethod
    async def cli_cleanup(cls, id: str | None) -> None:
        """Ends the boxes of all evaluations of this user, or one of them."""
        for about in await Sandbox.list():
            if id == about["box"] or (id is None and (about["job"] or "").startswith("inspect:")):
                await (await Sandbox.attach(about["box"])).close()

    async def connection(self, *, user: str | None = None) -> SandboxConnection:
        return SandboxConnection(
            type="baleen", command=f"baleen sandbox shell {self._box.id}", container=self._box.id
        )

    def default_polling_interval(self) -> float:
        return 0.2

    def _path(self, path: str) -> str:
        return str(PurePosixPath(self._workdir, path))

    async def _run(self, argv: list[str], **options: Any) -> RunResult:
        try:
            return await self._box.run(argv, **{"user": self._user, **options})
        except SandboxError as error:
            raise SandboxUnavailableError(str(error)) from error

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        data = input.encode() if isinstance(input, str) else input
        spilled = None
        if data is not None and len(data) > MAX_STDIN_BYTES:
            spilled = f"/tmp/.input-{id(data):x}"
            await self._box.files.write(spilled, data)
            cmd = ["/bin/sh", "-c", 'f=$1; shift; exec "$@" < "$f"', "sh", spilled, *cmd]
            data = None
        limit = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE
        try:
            result = await self._run(
                cmd,
                stdin=data,
                cwd=self._path(cwd or "."),
                env=env,
                user=user or self._user,
                timeout_s=timeout,
                max_output_bytes=min(limit, HARD_MAX_OUTPUT_BYTES),
            )
        finally:
            if spilled is not None:
                await self._box.files.remove(spilled)
        return _translated(cmd, result, timeout)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        path = self._path(file)
        data = contents.encode() if isinstance(contents, str) else contents
        await self._check(_PREPARE, path)
        result = await self.exec(["/bin/sh", "-c", 'cat > "$1"', "sh", path], input=data)
        if not result.success:
            raise PermissionError(f"{path}: {result.stderr}")

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        path = self._path(file)
        await self._check(_LOOK, path)
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        try:
            data = await self._box.files.read(path, max_bytes=limit)
        except OSError as error:
            if error.errno == 27:  # EFBIG: longer than max_bytes
                text_limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR
                raise OutputLimitExceededError(text_limit, None) from None
            raise
        return data.decode() if text else data

    async def _check(self, script: str, path: str) -> None:
        """Raises what the sandbox's user may not do with a path."""
        result = await self._run(["/bin/sh", "-c", script, "sh", path], cwd="/")
        if result.exit_code in _ERRORS:
            kind, words = _ERRORS[result.exit_code]
            raise kind(result.exit_code, words, path)


def _translated(cmd: list[str], result: RunResult, timeout: int | None) -> ExecResult[str]:
    if result.timed_out:
        raise TimeoutError(f"{cmd[0]} was killed after {timeout} seconds")
    stdout, stderr = result.text, result.stderr.decode("utf-8", "replace")
    if result.truncated:
        raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, stdout)
    if result.exit_code == NOT_RUNNABLE and stderr == f"baleen: {cmd[0]}: permission denied\n":
        raise PermissionError(stderr.strip())
    return ExecResult(result.exit_code == 0, result.exit_code, stdout, stderr)


async def _from_text(config: str | None) -> BaleenConfig:
    """A config given as text: a Dockerfile's path, or an image's name."""
    if config is None:
        return BaleenConfig()
    path = Path(config)
    if not path.is_file():
        return BaleenConfig(image=config)
    home = Home.default()
    home.prepare()
    digest = await build(home, path.parent, dockerfile=path)
    return BaleenConfig(image=f"sha256:{digest}")
