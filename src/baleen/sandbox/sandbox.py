"""``Sandbox``: a box as its user holds it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from baleen.errors import UsageError

from .arguments import MountSpec, image_of, labels_of, mount_of, network_of, toolkits_of
from .backends import Backend, backends, check_offered
from .call import interpreter, make_call, result_of_call
from .client import EdgeClient
from .egress import network_to_wire
from .errors import BoxGoneError
from .files import Files
from .images.base import Config
from .job import Argv, Input, check_window, key_of, make_job
from .process import Process
from .remote import Remote
from .shared_client import SharedClient
from .spec import MAX_OUTPUT_BYTES, Allowlist, BoxSpec, Mount, RunResult

T = TypeVar("T")


class Sandbox:
    """A box: made by :meth:`create` or found by :meth:`attach`, never by the constructor.

    It lives in the edge daemon and outlives this process; ``close`` or ``async with`` ends it,
    otherwise it ends ``ttl_idle_s`` after its last client has gone and its last command has ended.
    """

    def __init__(self, client: EdgeClient, about: Mapping[str, Any]) -> None:
        self._client: EdgeClient | None = client
        self._about = about
        self.id: str = about["box"]
        self.files = Files(self._file)

    @classmethod
    async def create(
        cls,
        *,
        backend: str = "container",
        image: str | os.PathLike[str] = "host",
        workspace: str | None = None,
        toolkits: Sequence[str] = (),
        mounts: Sequence[MountSpec] = (),
        cpu: float = 1.0,
        memory_mb: int = 512,
        disk_mb: int = 1024,
        pids: int = 256,
        network: str | Allowlist = "none",
        ttl_idle_s: float = 300,
        job: str | None = None,
        labels: Mapping[str, str] | None = None,
        trajectory: str | os.PathLike[str] | None = None,
        one_off: bool = False,
    ) -> Sandbox:
        """Makes a box.

        Args:
            backend: "container" or "function"; :meth:`backends` lists what this host offers.
            image: "host" (a view of this host's programs), a name of the image store, or the path
                of a folder that holds a root file system.
            workspace: an image whose layers lie on those of ``image``.
            toolkits: images whose layers lie on the workspace, the last one on top.
            mounts: (host folder, path in the box, "ro" or "rw"), read-only by default.
            cpu: cores.
            memory_mb: what its processes and files may take together.
            disk_mb: what may be written; it lies in memory.
            pids: processes and threads.
            network: "none"; "public", the internet but not this host's own and private networks;
                or an Allowlist. Both lead through a proxy for HTTP and CONNECT that programs find
                by the usual variables; a box has no other way out.
            ttl_idle_s: how long the box waits for a client when it has none and runs nothing.
            job: label by which boxes are reaped together.
            labels: anything, shown in listings.
            trajectory: where its log lies; by default under ``$BALEEN_HOME/logs``.
            one_off: nobody will ask for its like; none is built ahead.

        Raises:
            UsageError: an argument cannot be right.
            UnsupportedError: a backend, image or network mode that is not offered here.
            HostError: this host cannot run boxes.
            CapacityError: the host has no room for another box.
            LaunchError: it did not start; nothing is left of it.
        """
        python: list[str] = []
        needed: list[Mount] = []
        if backend == "function":
            python, needed = interpreter()
        spec = BoxSpec(
            backend=backend,
            image=image_of(image),
            workspace=workspace,
            toolkits=toolkits_of(toolkits),
            mounts=(*needed, *map(mount_of, mounts)),
            python=tuple(python),
            cpu=cpu,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            pids=pids,
            network=network_of(network),
            ttl_idle_s=ttl_idle_s,
            job=job,
            labels=labels_of(labels or {}),
            trajectory=str(Path(trajectory).resolve()) if trajectory is not None else None,
            one_off=one_off,
        )
        if Remote.from_environment() is None:
            check_offered(spec)
        return await cls._open("create", request=f"r{uuid.uuid4().hex}", spec=spec.to_wire())

    @classmethod
    async def attach(cls, box_id: str) -> Sandbox:
        """Finds a living box again, from any process of the same user.

        Raises:
            BoxGoneError: it has ended; ``cause`` says why.
        """
        return await cls._open("attach", box=box_id)

    @classmethod
    async def _open(cls, do: str, **arguments: Any) -> Sandbox:
        client = SharedClient.acquire()
        try:
            about = await client.ask(do, **arguments)
        except BaseException:
            await SharedClient.release(client)
            raise
        client.hold(about["box"])
        return cls(client, about)

    @staticmethod
    def backends() -> list[Backend]:
        """What this host offers, with capabilities and reasons, before any launch."""
        return backends()

    @staticmethod
    async def list(labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The living boxes of this user, those with all of ``labels`` if given."""
        boxes: list[dict[str, Any]] = await SharedClient.ask("list")
        wanted = (labels or {}).items()
        return [box for box in boxes if wanted <= box["labels"].items()]

    @staticmethod
    async def reap(job: str | None = None) -> Sequence[str]:
        """Ends every box of a job; without a job, every box that no client holds."""
        ended: Sequence[str] = await SharedClient.ask("reap", job=job)
        return ended

    @staticmethod
    async def pause_job(job: str) -> Sequence[str]:
        """Pauses every box of a job; returns their ids."""
        paused: Sequence[str] = await SharedClient.ask("pause_job", job=job)
        return paused

    @staticmethod
    async def resume_job(job: str) -> Sequence[str]:
        """Lets every box of a job go on; returns their ids."""
        resumed: Sequence[str] = await SharedClient.ask("resume_job", job=job)
        return resumed

    @property
    def config(self) -> Config:
        """What the image says of how commands run: variables, user, folder, entry point."""
        return Config.from_data(self._about["config"])

    @property
    def trajectory(self) -> Path:
        """Where the log lies."""
        return Path(self._about["log"])

    def capabilities(self) -> dict[str, object]:
        """What this box offers and which limits hold."""
        offered = next(b.capabilities for b in backends() if b.name == "container")
        held = self._about["confinement"]
        return {
            **offered,
            "limits": self._about["limits"],
            "landlock": held.get("landlock", False),
            "own_ids": self._about["privileged"] and not held.get("unmapped"),
            "pauses_by": self._about["pauses_by"],
        }

    async def run(
        self,
        argv: Argv,
        *,
        timeout_s: float | None = 30,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | bytes] | None = None,
        stdin: Input | None = None,
        user: str | int | None = None,
        key: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> RunResult:
        """Runs a command and returns when its own process has ended.

        Background children live on. When the timeout strikes, the command's whole tree is killed,
        ``exit_code`` is 124 and ``timed_out`` is true. The same ``key`` again gives the recorded
        result and never runs anything, also after the death of this process or of the edge.

        Raises:
            BoxGoneError: the box had ended before; nothing ran.
            InDoubtError: the box ended while the command ran.
            DivergenceError: ``key`` was used for another command.
            BoxBusyError: the box is at its pids or memory limit; nothing ran.
            TrajectoryError: the log cannot be written; nothing ran.
        """
        job = self._job(
            argv,
            timeout_s=timeout_s,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            max_output_bytes=max_output_bytes,
        )
        answer = await self._ask("run", key=key_of(key), job=job)
        return RunResult.from_wire(answer)

    async def shell(self, line: str, **options: Any) -> RunResult:
        """Runs a line with ``/bin/sh -c``; options as in :meth:`run`."""
        return await self.run(["/bin/sh", "-c", line], **options)

    async def call(
        self,
        function: Callable[..., T],
        /,
        *arguments: Any,
        timeout_s: float | None = 30,
        key: str | None = None,
        **options: Any,
    ) -> T:
        """Calls a Python function in a fresh fork of the box's interpreter (backend "function").

        Function, arguments and closure travel by value; modules that it names must be installed. It
        may return plain data: None, bool, int, float, str, bytes, lists, tuples and dicts of them.

        Raises:
            CallError: it raised, was killed or ran out of time.
            UsageError: something cannot travel, or the box is of another backend.
            DivergenceError, InDoubtError, BoxGoneError: as in :meth:`run`.
        """
        if self._about["spec"]["backend"] != "function":
            raise UsageError(
                f"box {self.id} is a container", remedy='create it with backend="function"'
            )
        name = getattr(function, "__qualname__", repr(function))
        job = make_call(name, function, arguments, options, timeout_s=timeout_s)
        answer = await self._ask("run", key=key_of(key), job=job)
        value: T = result_of_call(name, RunResult.from_wire(answer))
        return value

    def stream(
        self,
        argv: Argv,
        *,
        timeout_s: float | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | bytes] | None = None,
        user: str | int | None = None,
        key: str | None = None,
        stdin: Input | None = None,
        stdin_open: bool = False,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Process:
        """Starts a command whose output comes as it is written; see :class:`Process`."""
        job = self._job(
            argv,
            timeout_s=timeout_s,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            max_output_bytes=max_output_bytes,
        )
        job |= {"live": True, "stdin_open": stdin_open}
        return Process(self._ask, key_of(key), job)

    def pty(
        self,
        argv: Argv,
        *,
        rows: int = 24,
        columns: int = 80,
        timeout_s: float | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | bytes] | None = None,
        user: str | int | None = None,
        key: str | None = None,
    ) -> Process:
        """Starts a command on a terminal; its output is one stream, its input is open."""
        check_window(rows, columns)
        env = {"TERM": "xterm-256color", **(env or {})}
        job = self._job(argv, timeout_s=timeout_s, cwd=cwd, env=env, user=user)
        job |= {"live": True, "tty": True, "rows": rows, "cols": columns}
        return Process(self._ask, key_of(key), job)

    def _job(
        self,
        argv: Argv,
        *,
        timeout_s: float | None,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str | bytes] | None,
        user: str | int | None,
        stdin: Input | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> dict[str, Any]:
        """A command as the image's config completes it; an ordinary user's box has one user."""
        config = self._about["config"]
        if user is None and self._about["privileged"]:
            user = config.get("user")
        return make_job(
            argv,
            timeout_s=timeout_s,
            cwd=cwd or config.get("workdir"),
            env={**config.get("env", {}), **(env or {})},
            stdin=stdin,
            user=user,
            max_output_bytes=max_output_bytes,
        )

    async def port(self, number: int) -> str:
        """Returns the host's address, ``127.0.0.1:n``, that leads to a TCP port of the box.

        It holds until the box or the edge ends; ask again after a restart of the edge.
        """
        if not isinstance(number, int) or not 0 < number < 65536:
            raise UsageError(f"port {number!r} is not in 1..65535")
        return f"127.0.0.1:{await self._ask('port', port=number)}"

    async def set_network(self, network: str | Allowlist) -> None:
        """Changes what the box may reach; connections made under the old policy are cut.

        Raises:
            BoxFileError: a program of the box has taken the proxy's port.
        """
        await self._ask("set_network", network=network_to_wire(network))

    async def snapshot(self, name: str | None = None) -> str:
        """Makes an image of this box's files and returns its digest; ``name`` names it.

        What was written becomes one more layer. Its processes stand still meanwhile. Mounted
        folders, ``/proc``, ``/sys`` and ``/dev`` are not part of it.

        Raises:
            ImageError: the edge is an ordinary user's and may not read a file; names it.
            BoxGoneError: the box has ended.
        """
        digest: str = await self._ask("snapshot", name=name)
        return digest

    async def fork(self, n: int = 1) -> Sequence[Sandbox]:
        """Makes ``n`` boxes that begin with this one's files and limits.

        Processes do not go along. Each child has its own id, host name, log and ids on the host;
        keys used here are unknown there; random numbers come from the kernel, never from here.

        Raises:
            ImageError: as for :meth:`snapshot`.
            CapacityError, LaunchError: not all could be made; none is left.
        """
        if not isinstance(n, int) or n < 1:
            raise UsageError(f"fork({n!r}) makes nothing", remedy="how many, from 1")
        requests = [f"r{uuid.uuid4().hex}" for _ in range(n)]
        children = []
        for about in await self._ask("fork", requests=requests):
            client = SharedClient.acquire()
            client.hold(about["box"])
            children.append(Sandbox(client, about))
        return children

    async def pause(self) -> None:
        """Stops every process of the box where it is. Any later request lets it go on.

        A paused box does not expire, and no time passes for its commands' timeouts.
        ``capabilities()["pauses_by"]`` is "freezer", or "signals" where this user has none: then
        a program that asks for it learns that its child was stopped.

        Raises:
            BoxFileError: by signals, and a process does not stop.
        """
        await self._ask("pause")

    async def resume(self) -> None:
        """Lets a paused box go on. Again: does nothing."""
        await self._ask("resume")

    async def _ask(self, do: str, **arguments: Any) -> Any:
        if self._client is None:
            raise BoxGoneError(f"this handle of box {self.id} is closed", cause="stopped")
        return await self._client.ask(do, box=self.id, **arguments)

    async def _file(self, op: str, path: str, **arguments: Any) -> Any:
        return await self._ask("file", op=op, path=path, arguments=arguments)

    async def close(self) -> None:
        """Ends the box. Again: does nothing.

        When it returns, the log is closed and the box takes nothing more; its processes are killed,
        and the host frees what they held, in the next milliseconds. With a writable mount it
        returns when the last process is gone.
        """
        if self._client is None:
            return
        try:
            self._client.release(self.id)
            await self._ask("close")
        finally:
            await self.detach()

    async def detach(self) -> None:
        """Lets go of the box and leaves it alive for :meth:`attach`."""
        if self._client is not None:
            client, self._client = self._client, None
            client.release(self.id)
            await SharedClient.release(client)

    async def __aenter__(self) -> Sandbox:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.shield(self.close())
