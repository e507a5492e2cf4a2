"""The edge daemon, ``python -m baleen.sandbox.edge``: one per user, owner of its boxes.

Clients start it on demand. It ends by itself when it has neither boxes nor clients for a while.
Killed and started again, it takes its boxes over where the old one left them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from baleen.errors import SandboxError

from . import volatile
from .backends import is_privileged
from .binary import box_binary
from .cgroups import NEEDED, Groups, find_groups
from .door import open_door
from .errors import EdgeError
from .home import Home
from .launcher import Launcher
from .registry import Registry
from .server import Server
from .switches import Switches
from .turns import take_short_turns

IDLE_EXIT_S = 60.0
MAX_BOXES = 2_000
POOL_SIZE = 4
"""A cradle waits 10 ms for its control groups, twice a box's life: with two, a program that makes
one box after the other waited for that in every tenth."""

REMEMBERED = 1_000
TICK_S = 0.5
BACKLOG = 4_096
"""Clients that may wait for the recovery; the kernel caps it at `net.core.somaxconn`."""

_log = logging.getLogger("baleen.sandbox.edge")


@dataclass(frozen=True)
class Listen:
    """Where an edge serves other machines."""

    host: str
    port: int
    token: str
    tls: ssl.SSLContext | None = None
    announce: Callable[[int], None] = lambda port: None


class Settings:
    """The edge's own settings, from ``BALEEN_SANDBOX_*``."""

    def __init__(self) -> None:
        self.idle_exit_s = float(os.environ.get("BALEEN_SANDBOX_IDLE_EXIT_S", IDLE_EXIT_S))
        self.max_boxes = int(os.environ.get("BALEEN_SANDBOX_MAX_BOXES", MAX_BOXES))
        self.pool_size = int(os.environ.get("BALEEN_SANDBOX_POOL_SIZE", POOL_SIZE))
        self.remembered = int(os.environ.get("BALEEN_SANDBOX_REMEMBERED", REMEMBERED))
        self.listen: Listen | None = None
        self.switches = Switches.from_environment()


class Edge:
    """The running daemon."""

    def __init__(self, home: Home, settings: Settings) -> None:
        self._home = home
        self._settings = settings
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Serves until told to stop or idle for long enough."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopped.set)
        registry = await self._start_registry()
        sock = _listen(self._home.socket)
        self._home.pid_file.write_text(f"{os.getpid()}\n")
        await registry.recover()
        server = Server(registry, self._stopped.set)
        listener = await loop.create_unix_server(server.new_client, sock=sock, backlog=BACKLOG)
        _log.info(
            "edge %d serves %s, %s, box folders in %s",
            os.getpid(),
            self._home.socket,
            registry.groups.description,
            self._home.boxes.resolve(),
        )
        door = await self._open_door(server)
        try:
            await self._watch(registry, server)
        finally:
            if door is not None:
                door.close()
            self._home.socket.unlink(missing_ok=True)
            self._home.pid_file.unlink(missing_ok=True)
            listener.close()
            server.hang_up()
            await registry.stop()
            registry.groups.release()
            volatile.end(self._home.boxes)

    async def _open_door(self, server: Server) -> asyncio.Server | None:
        listen = self._settings.listen
        if listen is None:
            return None
        door = await open_door(server, listen.host, listen.port, listen.token, listen.tls)
        listen.announce(door.sockets[0].getsockname()[1])
        return door

    async def _start_registry(self) -> Registry:
        binary = box_binary()
        self._home.prepare()
        privileged = is_privileged()
        groups = Groups(0, (), NEEDED)
        if self._settings.switches.limits:
            groups = find_groups(self._home.group_name, required=privileged)

        async def launch() -> Launcher:
            return await Launcher.start(
                binary,
                self._home.zygote_lock,
                privileged=privileged,
                group_parents=groups.parents,
                pool_size=self._settings.pool_size,
            )

        registry = Registry(
            self._home,
            groups,
            launch,
            privileged=privileged,
            max_boxes=self._settings.max_boxes,
            pool_size=self._settings.pool_size,
            switches=self._settings.switches,
            remembered=self._settings.remembered,
        )
        await registry.open()
        volatile.begin(self._home.boxes, enabled=self._settings.switches.volatile)
        return registry

    async def _watch(self, registry: Registry, server: Server) -> None:
        loop = asyncio.get_running_loop()
        last_used = loop.time()
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), TICK_S)
            try:
                await registry.expire()
            except SandboxError:
                _log.exception("expiring boxes")
            if server.has_clients or not registry.is_idle or self._settings.listen is not None:
                last_used = loop.time()
            if loop.time() - last_used > self._settings.idle_exit_s:
                return


def _listen(path: Path) -> socket.socket:
    """Opens the door, once nothing can be refused any more; clients wait in it for the recovery.

    Waiting there costs them nothing; waiting for a file to appear, they would ask again and again.
    """
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    old = os.umask(0o177)
    try:
        sock.bind(f"/proc/self/fd/{folder}/{partial.name}")  # a path may have only 107 bytes
        sock.listen(BACKLOG)
        partial.replace(path)  # clients see a socket only when somebody listens
    finally:
        os.umask(old)
        os.close(folder)
    return sock


def main(listen: Listen | None = None) -> int:
    """Runs the edge unless this user's edge runs already.

    Raises:
        EdgeError: with ``listen``, where one runs already.
    """
    home = Home.default()
    home.prepare()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    with home.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if listen is not None:
                raise EdgeError(
                    f"an edge runs already under {home.root}", remedy="end it, or use another home"
                ) from None
            return 0  # somebody was faster; the client finds that one's socket
        try:
            take_short_turns()
            settings = Settings()
            settings.listen = listen
            asyncio.run(Edge(home, settings).run())
        except SandboxError as error:
            print(f"{error.code}\n{error.message}\n{error.remedy or ''}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
