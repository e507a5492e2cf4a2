"""What clients may ask of an edge, one coroutine per request; errors travel as data."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from baleen import __version__
from baleen.errors import SandboxError, UsageError

from .box import Box, gone
from .errors import Cause, UnsupportedError, to_wire
from .frames import Link, Message
from .registry import Registry
from .spec import BoxSpec, RunResult

PROTOCOL = 2
"""Version of the messages between SDK and edge; both say theirs in the first message."""

_log = logging.getLogger("baleen.sandbox.edge")


class Server:
    """Answers clients' requests; owns nothing but the list of who holds which box."""

    def __init__(self, registry: Registry, stop: Callable[[], None]) -> None:
        self.registry = registry
        self.started_at = time.time()
        self._stop = stop
        self._clients: set[Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def has_clients(self) -> bool:
        return bool(self._clients)

    def new_client(self, *, is_remote: bool = False) -> Link:
        """Called per accepted connection."""
        client = Client(self, is_remote=is_remote)
        self._clients.add(client)
        return client.link

    def keep(self, task: asyncio.Task[None]) -> None:
        """Keeps a task from being forgotten before it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def drop(self, client: Client) -> None:
        self._clients.discard(client)

    def stop(self) -> None:
        self._stop()

    def hang_up(self) -> None:
        """Ends every connection: what is asked from now on is the next edge's to answer."""
        for client in self._clients:
            client.link.close()


class Client:
    """One connection: its requests under way and the boxes that it keeps from expiring."""

    def __init__(self, server: Server, *, is_remote: bool = False) -> None:
        self._server = server
        self._is_remote = is_remote
        self._registry = server.registry
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: dict[str, Box] = {}
        """By id; the registry forgets boxes that ended long ago, their holders may not."""
        self.link = Link(self._receive, self._lost)

    def _receive(self, message: Message) -> None:
        if message.get("do") == "run":
            self._run(message, self.link.send)
            return
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def serve(self, message: Message) -> Message:
        """Answers one request of a client that has no connection of its own."""
        if message["do"] != "run":
            return await self._answered(message)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._run(message, lambda answer: None if future.done() else future.set_result(answer))
        return await future

    def forget(self) -> None:
        """Lets go of the boxes that the request has made or found."""
        self._lost()

    def _lost(self) -> None:
        for box_id in list(self._held):
            self._release(box_id)
        self._server.drop(self)

    async def _answer(self, message: Message) -> None:
        self.link.send(await self._answered(message))

    async def _answered(self, message: Message) -> Message:
        request = message.get("id")
        handler = _HANDLERS.get(message.get("do", ""))
        try:
            if handler is None:
                raise UsageError(f"unknown request {message.get('do')!r}")
            return {"id": request, "ok": await handler(self, message)}
        except Exception as error:
            return {"id": request, "error": to_wire(_known(error, message))}

    async def _wake(self, box_id: str) -> None:
        """Whatever is asked of a paused box wakes it."""
        box = self._registry.find(box_id)
        if box.is_paused and box.ended is None:
            await self._registry.resume(box_id)

    def _run(self, message: Message, answer: Callable[[Message], None]) -> None:
        """The one request that has no task of its own: it is the most frequent by far."""
        request = message["id"]

        def done(outcome: RunResult | SandboxError) -> None:
            if isinstance(outcome, RunResult):
                answer({"id": request, "ok": outcome.to_wire()})
            else:
                answer({"id": request, "error": to_wire(outcome)})

        try:
            box = self._registry.find(message["box"])
            if box.is_paused:
                task = asyncio.create_task(self._wake(box.id))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            on_output = self._relay(request) if message.get("live") else None
            box.run(message["key"], message["job"], done, on_output)
        except Exception as error:
            answer({"id": request, "error": to_wire(_known(error, message))})

    def _hold(self, box: Box) -> None:
        if box.id not in self._held:
            self._held[box.id] = box
            box.clients += 1

    def _release(self, box_id: str) -> None:
        if (box := self._held.pop(box_id, None)) is not None:
            box.clients -= 1
            box.idle_since = time.monotonic()

    async def hello(self, message: Message) -> Any:
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "package": os.path.dirname(__file__),  # noqa: PTH120 - compared as text with the client's
            "pid": os.getpid(),
            "boxes": len(self._registry.boxes),
        }

    async def create(self, message: Message) -> Any:
        spec = BoxSpec.from_wire(message["spec"])
        if self._is_remote:
            _check_remote(spec)
        box = await self._registry.create(message["request"], spec)
        self._hold(box)
        return self._about(box)

    async def attach(self, message: Message) -> Any:
        box = self._registry.find(message["box"])
        if box.ended is not None and not message.get("ended_too"):
            raise gone(box.id, box.ended)
        self._hold(box)
        return self._about(box)

    def _about(self, box: Box) -> dict[str, Any]:
        return {
            "box": box.id,
            "log": str(box.log.path),
            "limits": self._registry.groups.description,
            "privileged": self._registry.privileged,
            "confinement": box.confinement,
            "pauses_by": self._registry.pauses_by,
            "spec": box.spec.to_wire(),
            "config": box.image.config.to_data(),
        }

    def _relay(self, request: int) -> Callable[[int, bytes], None]:
        return lambda stream, data: self.link.send({"id": request, "stream": stream, "data": data})

    async def stdin(self, message: Message) -> Any:
        box = self._registry.find(message["box"])
        await box.send_input(message["key"], message["data"], eof=message["eof"])

    async def signal(self, message: Message) -> Any:
        await self._registry.find(message["box"]).signal(message["key"], message["signal"])

    async def resize(self, message: Message) -> Any:
        box = self._registry.find(message["box"])
        await box.resize(message["key"], message["rows"], message["columns"])

    async def port(self, message: Message) -> Any:
        if self._is_remote:
            raise UnsupportedError(
                "a port of a box on another machine cannot be forwarded",
                remedy="run the client beside the edge",
            )
        return await self._registry.find(message["box"]).forward(message["port"])

    async def file(self, message: Message) -> Any:
        box = self._registry.find(message["box"])
        if box.ended is not None or box.link is None:
            raise gone(box.id, box.ended or Cause.NODE_LOST)
        await self._wake(box.id)
        box.idle_since = time.monotonic()
        return await box.link.file(message["op"], message["path"], **message["arguments"])

    async def snapshot(self, message: Message) -> Any:
        return await self._registry.snapshot(message["box"], message["name"])

    async def fork(self, message: Message) -> Any:
        children = await self._registry.fork(message["box"], message["requests"])
        for child in children:
            self._hold(child)
        return [self._about(child) for child in children]

    async def set_network(self, message: Message) -> Any:
        await self._registry.find(message["box"]).set_network(message["network"])

    async def pause(self, message: Message) -> Any:
        await self._registry.pause(message["box"])

    async def resume(self, message: Message) -> Any:
        await self._registry.resume(message["box"])

    async def pause_job(self, message: Message) -> Any:
        return await self._registry.of_job(message["job"], self._registry.pause)

    async def resume_job(self, message: Message) -> Any:
        return await self._registry.of_job(message["job"], self._registry.resume)

    async def close(self, message: Message) -> Any:
        box = self._registry.find(message["box"])
        removal = self._registry.destroy(box, Cause(message.get("cause", Cause.STOPPED)))
        self._release(box.id)
        if removal is not None and (message.get("wait") or box.writes_to_host):
            await removal

    async def list(self, message: Message) -> Any:
        return [
            {
                "box": box.id,
                "job": box.spec.job,
                "labels": dict(box.spec.labels),
                "image": box.spec.image,
                "created_at": box.created_at,
                "busy": box.is_busy,
                "clients": box.clients,
                "paused": box.is_paused,
                "pid": box.pid,
            }
            for box in self._registry.boxes
        ]

    async def reap(self, message: Message) -> Any:
        """Ends every box of a job, or every box that nobody holds."""
        job = message.get("job")
        chosen = [
            b
            for b in self._registry.boxes
            if (b.spec.job == job if job is not None else not b.clients)
        ]
        removals = [self._registry.destroy(box, Cause.EVICTED) for box in chosen]
        await asyncio.gather(*filter(None, removals))
        return [box.id for box in chosen]

    async def stop(self, message: Message) -> Any:
        """Ends the edge if it holds no live box."""
        if self._registry.boxes:
            raise UsageError(
                f"the edge holds {len(self._registry.boxes)} live boxes", remedy="close them first"
            )
        self._server.stop()


def _check_remote(spec: BoxSpec) -> None:
    """Refuses paths of this host: the token is no right to this host's files.

    Raises:
        UnsupportedError: the spec names one.
    """
    images = [name for name in (spec.image, spec.workspace, *spec.toolkits) if name]
    has_folder = any(name.startswith((".", "/", "~")) for name in images)
    if spec.mounts or spec.trajectory is not None or spec.backend == "function" or has_folder:
        raise UnsupportedError(
            "mounts, folders as images, trajectory paths and functions need a local edge",
            remedy="use box.files and images of the edge's store",
        )


def _known(error: Exception, message: Message) -> SandboxError | UsageError:
    """The error that a client gets: its own kind, or that the edge failed."""
    if isinstance(error, (SandboxError, UsageError)):
        return error
    _log.error("request %r failed", message.get("do"), exc_info=error)
    text = f"the edge failed: {type(error).__name__}: {error}"
    return SandboxError(text, remedy="its log is edge.log")


_Handler = Callable[[Client, Message], Awaitable[Any]]
_HANDLERS: dict[str, _Handler] = {
    name: getattr(Client, name)
    for name in (
        "hello",
        "create",
        "attach",
        "stdin",
        "signal",
        "resize",
        "port",
        "file",
        "snapshot",
        "fork",
        "set_network",
        "pause",
        "resume",
        "pause_job",
        "resume_job",
        "close",
        "list",
        "reap",
        "stop",
    )
}
