"""A command of a box on this shell's own streams or terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import termios
import threading
import tty
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

from baleen.errors import SandboxError, UsageError
from baleen.sandbox import Process, RunResult, Sandbox
from baleen.sandbox.spec import HARD_MAX_INPUT_BYTES

CHUNK_BYTES = 64 << 10


async def run_attached(box: Sandbox, argv: Sequence[str], options: dict[str, Any]) -> RunResult:
    """Runs a command as ``run`` and ``exec`` were asked to; its output has passed by then."""
    common = {
        "timeout_s": options["timeout"],
        "cwd": options["workdir"],
        "env": variables(options["env"]),
        "user": options["user"],
    }
    if options["tty"]:
        return await on_terminal(box, argv, **common)
    if not options["interactive"]:
        return await _shown(box.stream(argv, **common), options["as_json"])
    # A file is part of the command, so that a replay has it too; all else comes when it comes.
    if (content := _whole_file()) is not None:
        return await _shown(box.stream(argv, stdin=content, **common), options["as_json"])
    process = box.stream(argv, stdin_open=True, **common)
    feeder = threading.Thread(
        target=_feed, args=(process, asyncio.get_running_loop()), daemon=True, name="stdin"
    )
    feeder.start()  # a read of standard input cannot be cancelled: it must not hold the exit
    return await _shown(process, options["as_json"])


def variables(entries: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` as it is; a bare ``NAME`` with the value that it has here, if it has one."""
    pairs = [entry.partition("=") for entry in entries]
    given = {name: value for name, equals, value in pairs if equals}
    bare = (name for name, equals, _ in pairs if not equals)
    return {name: os.environ[name] for name in bare if name in os.environ} | given


def _whole_file() -> bytes | None:
    about = os.fstat(0)
    if not stat.S_ISREG(about.st_mode) or about.st_size > HARD_MAX_INPUT_BYTES:
        return None
    return sys.stdin.buffer.read()


def _feed(process: Process, loop: asyncio.AbstractEventLoop) -> None:
    """Passes standard input on until it ends, or what it is for: who waits for that is told."""
    with contextlib.suppress(SandboxError, OSError, RuntimeError, CancelledError):
        while data := os.read(0, CHUNK_BYTES):
            asyncio.run_coroutine_threadsafe(process.write(data), loop).result()
        asyncio.run_coroutine_threadsafe(process.write(b"", eof=True), loop).result()


async def _shown(process: Process, as_json: bool) -> RunResult:
    if as_json:
        return await process.wait()
    async for output in process:
        stream = sys.stdout.buffer if output.stream == "stdout" else sys.stderr.buffer
        stream.write(output.data)
        stream.flush()
    return await process.wait()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys go to the box one by one, Ctrl-C included."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def on_terminal(box: Sandbox, argv: Sequence[str], **options: Any) -> RunResult:
    """Runs a command on this terminal, window changes included.

    Raises:
        UsageError: standard input is no terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError("standard input is not a terminal", remedy="leave out -t")
    columns, rows = os.get_terminal_size(0)
    process = box.pty(argv, rows=rows, columns=columns, **options)
    loop = asyncio.get_running_loop()
    pending: set[asyncio.Task[None]] = set()

    def later(work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        pending.add(task)
        task.add_done_callback(pending.discard)

    def resized() -> None:
        columns, rows = os.get_terminal_size(0)
        later(process.resize(rows, columns))

    def typed() -> None:
        keys = os.read(0, 4096)
        if not keys:  # the terminal has gone
            loop.remove_reader(0)
        later(process.write(keys, eof=not keys))

    with _raw_terminal():
        loop.add_reader(0, typed)
        loop.add_signal_handler(signal.SIGWINCH, resized)
        try:
            return await _shown(process, as_json=False)
        finally:
            loop.remove_reader(0)
            loop.remove_signal_handler(signal.SIGWINCH)
