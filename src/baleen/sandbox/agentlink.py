"""The edge's side of a box's process 1: operations out, output and ends back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from errno import EBUSY
from pathlib import Path
from typing import Any

from baleen.errors import UsageError

from .errors import BoxFileError, BoxGoneError, Cause
from .frames import Link, Message

OnOutput = Callable[[int, bytes], None]
OnEnd = Callable[[Message | None], None]
"""Called once with an operation's end, with None when the box ended first."""

AGENT_PROTOCOL = 4

FORGET_AFTER_S = 0.005
"""A box is told which results it may forget with its next command, or after this: told at once, it
would wake up while the caller of the command waits for the reply."""
_FIRST_CONNECTION = 1 << 40
MAX_FILE_PIECE_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20
"""Input goes to process 1 in pieces: it ends a connection that brings a frame over 32 MiB."""


@dataclass(slots=True)
class _Operation:
    on_end: OnEnd
    on_output: OnOutput | None
    stdout: list[bytes] = field(default_factory=list)
    stderr: list[bytes] = field(default_factory=list)


class AgentLink:
    """A connection to one box; it replaces whatever connection the box had before."""

    def __init__(self, on_gone: Callable[[], None]) -> None:
        self._link = Link(self._receive, self._lost)
        self._operations: dict[int, _Operation] = {}
        self._on_gone = on_gone
        self._on_accept: Callable[[int], None] | None = None
        self._hello: asyncio.Future[Message] | None = None
        self._to_forget: list[Message] = []
        self._forgetting: asyncio.TimerHandle | None = None
        self._count = _FIRST_CONNECTION  # commands carry their log record's seq, which is smaller
        self.pid = 0
        self.known: dict[int, str] = {}
        """Operations in the box's journal when this connection began, with their state."""
        self.is_halted = False
        """Whether the box's processes stood still by :meth:`halt` when this connection began."""

    @classmethod
    async def connect(cls, path: Path, on_gone: Callable[[], None]) -> AgentLink:
        """Connects and learns which operations the box knows.

        Raises:
            OSError: nobody listens there.
            BoxGoneError: the box ended while it was asked.
        """
        self = cls(on_gone)
        sock = _connect(path)
        # Process 1 itself listens, so the kernel names it here, in this process's numbering.
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid = struct.unpack("3i", credentials)[0]
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._link, sock=sock)
        if not self.is_open:
            raise BoxGoneError("the box ended")  # told already, when nobody waited for a hello
        self._hello = loop.create_future()
        self._link.send({"t": "hello"})
        hello = await self._hello
        if hello["protocol"] != AGENT_PROTOCOL:
            self.close()
            raise BoxGoneError(
                f"the box at {path} speaks protocol {hello['protocol']}, not {AGENT_PROTOCOL}"
            )
        self.known = dict(hello["ops"])
        self.is_halted = hello["halted"]
        return self

    @property
    def is_open(self) -> bool:
        return self._link.is_open

    def execute(
        self, op: int, job: Message, on_end: OnEnd, on_output: OnOutput | None = None
    ) -> None:
        """Runs a command, or re-attaches to it: the box starts each operation number once.

        The end carries ``stdout`` and ``stderr``, also where ``on_output`` has seen them pass.
        """
        self._begin(op, {"t": "exec", "op": op, **job}, on_end, on_output)

    def _begin(self, op: int, message: Message, on_end: OnEnd, on_output: OnOutput | None) -> None:
        if not self._link.is_open:
            on_end(None)
            return
        self._operations[op] = _Operation(on_end, on_output)
        self._forget_with(message)

    async def _operate(self, op: int, message: Message, on_output: OnOutput | None) -> Message:
        future: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self._begin(
            op, message, lambda end: None if future.done() else future.set_result(end), on_output
        )
        try:
            end = await future
        finally:
            self._operations.pop(op, None)
        if end is None:
            raise BoxGoneError("the box has ended")
        return end

    def claim(self, orphan_ttl_s: int) -> None:
        """Makes a box that waited its owner's: from now on it outlives this connection."""
        self._link.send({"t": "claim", "orphan_ttl_s": orphan_ttl_s})

    def pause(self) -> None:
        """Stops the clocks of running commands' timeouts."""
        self._link.send({"t": "pause"})

    async def halt(self) -> None:
        """Stops the box's processes by signals, and their clocks, until :meth:`resume`.

        Raises:
            BoxFileError: a process does not stop; all of them go on.
        """
        self._count += 1
        answer = await self._operate(self._count, {"t": "halt", "op": self._count}, None)
        if "error" in answer:
            raise BoxFileError(f"the box cannot be paused: {answer['error']}", errno=EBUSY)

    def resume(self) -> None:
        self._link.send({"t": "resume"})

    @contextlib.asynccontextmanager
    async def standing_still(self, *, opens: bool) -> AsyncIterator[None]:
        """No process of the box but the first moves within; its clocks stand still, too.

        With `opens` an edge that is no root may open what process 1 holds open.

        Raises:
            BoxFileError: a process does not stop.
        """
        self._count += 1
        message = {"t": "still", "op": self._count, "opens": opens}
        try:
            answer = await self._operate(self._count, message, None)
            if "error" in answer:
                raise BoxFileError(f"the box cannot be read: {answer['error']}", errno=EBUSY)
            yield
        finally:
            if self.is_open:
                self._link.send({"t": "go"})

    def start_helper(self, argv: Sequence[str]) -> None:
        """Starts the process that serves jobs with ``via`` "helper"."""
        self._link.send({"t": "helper", "argv": list(argv)})

    def acknowledge(self, op: int) -> None:
        """Tells the box, soon, that the result is in the log and may be forgotten."""
        self._to_forget.append({"t": "ack", "op": op})
        if self._forgetting is None:
            loop = asyncio.get_running_loop()
            self._forgetting = loop.call_later(FORGET_AFTER_S, self._forget_with)

    def _forget_with(self, *messages: Message) -> None:
        """Sends messages together with what the box may forget."""
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None
        forgotten, self._to_forget = self._to_forget, []
        self._link.send(*forgotten, *messages)

    def send_input(self, op: int, data: bytes, *, eof: bool) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            is_last = start + _PIECE_BYTES >= len(data)
            self._link.send({"t": "stdin", "op": op, "data": piece, "eof": eof and is_last})
        if not data:
            self._link.send({"t": "stdin", "op": op, "data": b"", "eof": eof})

    def resize(self, op: int, rows: int, columns: int) -> None:
        self._link.send({"t": "resize", "op": op, "rows": rows, "cols": columns})

    async def connect_port(self, port: int, on_data: OnOutput) -> tuple[int, asyncio.Task[Message]]:
        """Connects to a TCP port of the box; returns the number to send to and its end."""
        self._count += 1
        op = self._count
        message = {"t": "connect", "op": op, "port": port}
        task = asyncio.create_task(self._operate(op, message, on_data))
        await asyncio.sleep(0)  # the task has sent its request
        return op, task

    async def listen(self, port: int, on_accept: Callable[[int], None]) -> None:
        """Opens a port of the box's loopback; its connections are told by their numbers.

        Raises:
            BoxFileError: the port is taken.
        """
        self._on_accept = on_accept
        self._count += 1
        answer = await self._operate(
            self._count, {"t": "listen", "op": self._count, "port": port}, None
        )
        if "error" in answer:
            raise BoxFileError(f"port {port} of the box: {answer['error']}", errno=answer["errno"])

    def take(self, op: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        """Takes what comes on an accepted connection."""
        self._operations[op] = _Operation(lambda _: on_end(), lambda _, data: on_data(data))

    def disconnect(self, op: int) -> None:
        self._link.send({"t": "cancel", "op": op})

    def signal(self, op: int, number: int) -> None:
        self._link.send({"t": "signal", "op": op, "signal": number})

    async def file(self, do: str, path: str, **arguments: Any) -> Any:
        """Performs one file operation inside the box.

        Raises:
            BoxFileError: it failed.
            UsageError: more data than one operation takes.
        """
        if len(arguments.get("data", b"")) > MAX_FILE_PIECE_BYTES:
            raise UsageError(
                f"one write takes {MAX_FILE_PIECE_BYTES} bytes",
                remedy="write the rest at further offsets",
            )
        self._count += 1
        message = {"t": "file", "do": do, "path": path, "op": self._count, **arguments}
        answer = await self._operate(self._count, message, None)
        if "error" in answer:
            text = os.strerror(answer["errno"]) if answer["errno"] else answer["error"]
            error = BoxFileError(f"cannot {do} {path}: {text}", errno=answer["errno"])
            if error.cause is Cause.DISK_FULL:
                error.remedy = "remove files, or create the box with a larger disk_mb"
            raise error
        return answer["value"]

    def _receive(self, message: Message) -> None:
        kind = message["t"]
        if kind == "hello" and self._hello is not None and not self._hello.done():
            self._hello.set_result(message)
        op = message.get("op", -1)
        if kind == "accepted" and self._on_accept is not None:
            self._on_accept(op)
            return
        operation = self._operations.get(op)
        if operation is None:
            return
        if kind == "out":
            self._take_output(operation, op, message["fd"], message["data"])
        elif kind in ("exit", "file"):
            del self._operations[op]
            message["stdout"] = b"".join(operation.stdout)
            message["stderr"] = b"".join(operation.stderr)
            operation.on_end(message)

    def _take_output(self, operation: _Operation, op: int, fd: int, data: bytes) -> None:
        if op < _FIRST_CONNECTION:
            (operation.stdout if fd == 1 else operation.stderr).append(data)
        if operation.on_output is not None:
            operation.on_output(fd, data)

    def _lost(self) -> None:
        operations, self._operations = list(self._operations.values()), {}
        for operation in operations:
            operation.on_end(None)
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(BoxGoneError("the box ended"))
            self._hello.exception()  # seen: nobody may be left to ask
        self._on_gone()

    async def drained(self) -> None:
        await self._link.drained()

    def forget_nothing_more(self) -> None:
        """The box is being killed: it need not be told anything that waits."""
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None
        self._to_forget.clear()

    def end(self) -> None:
        """Lets process 1 end, and with it the box, if it still lives; closes the connection."""
        self._link.send({"t": "exit"})
        self.close()

    def close(self) -> None:
        self.forget_nothing_more()
        self._link.close()


def _connect(path: Path) -> socket.socket:
    """Connects through the folder's descriptor: a socket's path may have only 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        sock.close()
        raise
    finally:
        os.close(folder)
    sock.setblocking(False)
    return sock
