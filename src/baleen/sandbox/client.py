"""The SDK's side of an edge: finding it, starting it, asking it, surviving its death.

Every request can be sent again: creation names its box, commands carry keys, the rest is
idempotent. So when the edge dies under a request, the client starts or finds the next one and asks
again.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baleen import __version__

from .binary import box_binary
from .errors import EdgeError, HostError, from_wire
from .frames import Link, Message
from .home import Home
from .remote import Remote
from .server import PROTOCOL

START_TIMEOUT_S = 15.0
RETRY_FOR_S = 30.0
POLL_S = 0.005
MAX_POLL_S = 0.1
"""Who only waits for another's start asks less and less often: hundreds of clients that all ask at
the starter's pace would leave the edge no processor to start on."""

OnOutput = Callable[[int, bytes], None]


class _Disconnected(Exception):
    """The edge went away before it answered."""


class _Request:
    def __init__(self, on_output: OnOutput | None) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.on_output = on_output


class EdgeClient:
    """A connection to this user's edge that mends itself; belongs to one event loop."""

    def __init__(self, home: Home | None = None) -> None:
        self._home = home or Home.default()
        self._remote = Remote.from_environment()
        self._link: Link | None = None
        self._requests: dict[int, _Request] = {}
        self._count = 0
        self._asking = 0
        """Requests under way; one that is cut off asks again, and needs a connection for it."""
        self._is_closing = False
        self._connecting = asyncio.Lock()
        self._holds: dict[str, Message] = {}

    async def ask(self, do: str, *, on_output: OnOutput | None = None, **arguments: Any) -> Any:
        """Asks the edge, again after a reconnection where that is needed.

        Raises:
            SandboxError: whatever the edge answered, rebuilt.
            EdgeError: no edge could be reached or started.
        """
        give_up_at = time.monotonic() + RETRY_FOR_S
        self._asking += 1
        try:
            while True:
                try:
                    if self._link is None or not self._link.is_open:
                        await self._connect()
                    return await self._ask_once(do, on_output, arguments)
                except _Disconnected:
                    if time.monotonic() > give_up_at:
                        raise EdgeError(
                            f"the edge at {self._home.socket} goes away again and again",
                            remedy=f"look into {self._home.log}",
                        ) from None
                    await asyncio.sleep(0.01)
        finally:
            self._asking -= 1
            if self._is_closing and not self._asking:
                await self._hang_up()

    async def _ask_once(self, do: str, on_output: OnOutput | None, arguments: Message) -> Any:
        if self._link is None or not self._link.is_open:
            raise _Disconnected
        self._count += 1
        number = self._count
        request = self._requests[number] = _Request(on_output)
        try:
            self._link.send({"id": number, "do": do, **arguments})
            return await request.answer
        finally:
            self._requests.pop(number, None)

    def hold(self, box_id: str) -> None:
        """Keeps a box from expiring while this client is connected, over reconnections too."""
        self._holds[box_id] = {"box": box_id, "ended_too": True}

    def release(self, box_id: str) -> None:
        self._holds.pop(box_id, None)

    async def _connect(self) -> None:
        async with self._connecting:
            if self._link is not None and self._link.is_open:
                return
            link = Link(self._receive, self._lost)
            if self._remote is not None:
                await self._remote.connect(link)
            else:
                sock = await self._reach()
                await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)
            self._link = link
            try:
                await self._greet()
            except BaseException:
                link.close()  # nothing more may be asked of an edge that is none of ours
                raise
            for hold in self._holds.values():
                link.send({"id": 0, "do": "attach", **hold})

    async def _greet(self) -> None:
        hello = await self._ask_once("hello", None, {"protocol": PROTOCOL, "version": __version__})
        if hello["protocol"] == PROTOCOL and hello["version"] == __version__:
            return
        if self._remote is not None:
            raise EdgeError(
                f"the edge at {self._remote.host} is version {hello['version']}, this is "
                f"{__version__}",
                remedy="install the same version on both sides",
            )
        if hello["boxes"]:
            raise EdgeError(
                f"the edge {hello['pid']} of {hello['package']} is version {hello['version']}, "
                f"this is {__version__}; it holds {hello['boxes']} live boxes",
                remedy="close them with that installation, or choose another BALEEN_HOME",
            )
        await self._ask_once("stop", None, {})
        raise _Disconnected

    async def _reach(self) -> socket.socket:
        """Connects, starting the edge if there is none; of many clients only one starts it."""
        sock = _try_connect(self._home.socket)
        if sock is not None:
            return sock
        box_binary()
        self._home.prepare()
        start_timeout_s = float(os.environ.get("BALEEN_SANDBOX_START_TIMEOUT_S", START_TIMEOUT_S))
        give_up_at = time.monotonic() + start_timeout_s
        with self._home.start_lock.open("w") as lock:
            starter = _Starter(self._home, lock.fileno())
            delay_s = POLL_S
            while True:
                sock = _try_connect(self._home.socket)
                if sock is not None:
                    return sock
                starter.see_to_it()
                if time.monotonic() > give_up_at:
                    raise EdgeError(
                        f"no edge answers at {self._home.socket} after {start_timeout_s} s",
                        remedy=f"look into {self._home.log}; a slow host may need a larger "
                        "BALEEN_SANDBOX_START_TIMEOUT_S",
                    )
                if not starter.is_at_it:
                    delay_s = min(delay_s * 1.5, MAX_POLL_S)
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))

    def _receive(self, message: Message) -> None:
        request = self._requests.get(message["id"])
        if request is None or request.answer.done():
            return
        if "stream" in message:
            if request.on_output is not None:
                request.on_output(message["stream"], message["data"])
        elif "error" in message:
            request.answer.set_exception(from_wire(message["error"]))
        else:
            request.answer.set_result(message["ok"])

    def _lost(self) -> None:
        for request in self._requests.values():
            if not request.answer.done():
                request.answer.set_exception(_Disconnected())

    async def close(self) -> None:
        """Lets go of the connection, once what is under way has been answered."""
        self._is_closing = True
        if not self._asking:
            await self._hang_up()

    async def _hang_up(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            link.close()
            await link.closed.wait()


def _try_connect(path: Path) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX)
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        sock.close()
        return None
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        sock.close()
        return None
    finally:
        os.close(folder)
    sock.setblocking(False)
    return sock


class _Starter:
    """Starts the edge while it holds the lock on starting, again if the edge ended at once."""

    def __init__(self, home: Home, lock: int) -> None:
        self._home = home
        self._lock = lock
        self._process: int | None = None

    @property
    def is_at_it(self) -> bool:
        return self._process is not None

    def see_to_it(self) -> None:
        """Starts the edge if nobody does.

        Raises:
            SandboxError: it was started and refused; the reason is its own.
        """
        if self._process is None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        code = 0 if self._process is None else _exit_code(self._process)
        if code is None:
            return
        if code > 0:
            raise _start_failure(self._home)
        # None yet; another edge, perhaps just going, was there; or a signal (a negative code)
        # ended it: a killed edge refused nothing, so it is started again until the time is over.
        self._process = _start_edge(self._home)


def _start_edge(home: Home) -> int:
    """Starts the edge detached and returns its process id; it outlives its starter on purpose."""
    # The edge runs this very package, wherever the caller imported it from.
    source = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "BALEEN_HOME": str(home.root)}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [source, os.environ.get("PYTHONPATH")])
    )
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "baleen.sandbox.edge"],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(home.log), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _exit_code(pid: int) -> int | None:
    """The exit code of a child, None while it runs; 0 where somebody else has collected it."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if ended else None


def _start_failure(home: Home) -> Exception:
    lines = home.log.read_text(errors="replace").splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("sandbox-"):
            code, message, remedy = (*lines[index : index + 3], "", "")[:3]
            return from_wire({"code": code, "message": message, "remedy": remedy or None})
    return HostError(
        f"the edge did not start: {lines[-1] if lines else 'no output'}",
        remedy=f"look into {home.log}",
    )
