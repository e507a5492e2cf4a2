"""The edge's side of the zygote process: requests to launch, adopt and remove boxes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import HostError, LaunchError
from .frames import Link, Message

PROTOCOL = 4
LOCK_ATTEMPTS = 1_000
_ADVICE = {
    1: "mounts are forbidden here: run the edge as root, or allow unprivileged user namespaces",
    28: "a limit on namespaces is reached: raise /proc/sys/user/max_*_namespaces",
}


async def _locked(path: Path) -> int:
    """Returns a descriptor with the exclusive lock on a file.

    Raises:
        HostError: a zygote of this home does not end.
    """
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        except BlockingIOError:
            await asyncio.sleep(0.01)
    os.close(held)
    raise HostError(
        f"an old launcher still holds {path}", remedy="end it: `fuser` shows its process"
    )


class Launcher:
    """One zygote process; many requests may be under way."""

    def __init__(self, process: subprocess.Popen[bytes], link: Link) -> None:
        self._process = process
        self._link = link
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._count = 0
        self.known: set[str] = set()
        """Boxes that this launcher has made or adopted and not been asked to remove."""

    @classmethod
    async def start(
        cls,
        binary: Path,
        lock: Path,
        *,
        privileged: bool,
        group_parents: Sequence[Path],
        pool_size: int,
    ) -> Launcher:
        """Starts the zygote, once the last one of this home has ended, and tells it how to launch.

        The zygote holds ``lock`` as long as it lives, so what a dead edge's zygote was still
        launching is settled before anybody looks for boxes.

        Raises:
            HostError: it does not start or speaks another protocol version.
        """
        ours, theirs = socket.socketpair()
        held = await _locked(lock)
        try:
            process = subprocess.Popen(
                ["baleen-box", "zygote"],
                pass_fds=[held],
                executable=str(binary),
                stdin=theirs.fileno(),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise HostError(
                f"cannot start {binary}: {error.strerror}", remedy="rebuild the native binaries"
            ) from error
        finally:
            theirs.close()
            os.close(held)
        launcher: Launcher
        link = Link(lambda message: launcher._answer(message), lambda: launcher._lost())
        launcher = cls(process, link)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        parents = [str(parent) for parent in group_parents]
        hello = await launcher._request(
            {
                "t": "configure",
                "privileged": privileged,
                "group_parents": parents,
                "pool_size": pool_size,
            }
        )
        if hello.get("protocol") != PROTOCOL:
            await launcher.stop()
            raise HostError(
                f"{binary} speaks protocol {hello.get('protocol')}, not {PROTOCOL}",
                remedy="rebuild it",
            )
        return launcher

    async def create(self, spec: dict[str, Any]) -> Message:
        """Launches a box and returns its process id, groups and id-unmapped folders.

        Raises:
            LaunchError: with the step that failed; nothing of the box is left.
        """
        answer = await self._request({"t": "create", **spec})
        if "error" in answer:
            raise LaunchError(
                f"box {spec['id']} did not start: {answer['error']}",
                remedy=_ADVICE.get(answer["errno"]),
            )
        self.known.add(spec["id"])
        return answer

    async def adopt(self, box_id: str, pid: int) -> None:
        """Makes a running box known to this zygote, so that it can remove it."""
        answer = await self._request({"t": "adopt", "id": box_id, "pid": pid})
        if "error" in answer:
            raise LaunchError(f"cannot adopt box {box_id}: {answer['error']}")
        self.known.add(box_id)

    async def destroy(self, box_id: str, groups: Sequence[str]) -> None:
        """Kills a box; returns when its last process and its groups are gone."""
        self.known.discard(box_id)
        answer = await self._request({"t": "destroy", "id": box_id, "groups": list(groups)})
        if "error" in answer:
            raise LaunchError(f"cannot remove box {box_id}: {answer['error']}")

    async def _request(self, message: Message) -> Message:
        self._count += 1
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[self._count] = future
        self._link.send({**message, "request": self._count})
        if not self._link.is_open:
            self._lost()
        return await future

    def _answer(self, message: Message) -> None:
        future = self._waiting.pop(message["request"], None)
        if future is not None and not future.done():
            future.set_result(message)

    def _lost(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LaunchError("the launcher process ended", remedy="try again"))
        self._waiting.clear()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._link.is_open

    async def stop(self) -> None:
        """Ends the zygote; its boxes live on."""
        self._link.close()
        await asyncio.to_thread(self._process.wait)
