"""``baleen sandbox``: boxes from the shell, with Docker's habits.

A command's own exit code passes through: 128 + n after signal n, 124 after the timeout.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from baleen.errors import UsageError
from baleen.sandbox import Process, RunResult, Sandbox
from baleen.sandbox.home import Home
from baleen.sandbox.trajectory import Kind, Record, read

T = TypeVar("T")
FOLLOW_EVERY_S = 0.2
COMMAND = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.group()
def sandbox() -> None:
    """Make, use and remove boxes."""


def _now(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _mount(text: str) -> tuple[str, str, str]:
    """SOURCE:TARGET or SOURCE:TARGET:ro|rw."""
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise UsageError(f"mount {text!r} is not SOURCE:TARGET[:rw]")
    return parts[0], parts[1], parts[2] if len(parts) == 3 else "ro"


def _finish(result: RunResult, as_json: bool) -> None:
    """Passes output and exit code on."""
    if as_json:
        data = result.to_wire() | {
            name: getattr(result, name).decode("utf-8", "replace") for name in ("stdout", "stderr")
        }
        click.echo(json.dumps(data))
    sys.exit(result.exit_code)


async def _stream(process: Process, as_json: bool) -> RunResult:
    if as_json:
        return await process.wait()
    async for output in process:
        stream = sys.stdout.buffer if output.stream == "stdout" else sys.stderr.buffer
        stream.write(output.data)
        stream.flush()
    return await process.wait()


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys go to the box one by one, Ctrl-C included."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def _on_terminal(box: Sandbox, argv: list[str], user: str | None) -> RunResult:
    if not sys.stdin.isatty():
        raise UsageError("standard input is not a terminal", remedy="leave out -t")
    columns, rows = shutil.get_terminal_size()
    process = box.pty(argv, rows=rows, columns=columns, user=user)
    loop = asyncio.get_running_loop()
    pending: set[asyncio.Task[None]] = set()

    def later(work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        pending.add(task)
        task.add_done_callback(pending.discard)

    def resized() -> None:
        columns, rows = shutil.get_terminal_size()
        later(process.resize(rows, columns))

    with _raw_terminal():
        loop.add_reader(0, lambda: later(process.write(os.read(0, 4096))))
        loop.add_signal_handler(signal.SIGWINCH, resized)
        try:
            return await _stream(process, as_json=False)
        finally:
            loop.remove_reader(0)
            loop.remove_signal_handler(signal.SIGWINCH)


async def _use(box: Sandbox, argv: list[str], options: dict[str, Any]) -> RunResult:
    if options["tty"]:
        return await _on_terminal(box, argv, options["user"])
    stdin = sys.stdin.buffer.read() if options["interactive"] else None
    process = box.stream(
        argv,
        timeout_s=options["timeout"],
        cwd=options["workdir"],
        env=dict(entry.split("=", 1) for entry in options["env"] if "=" in entry),
        user=options["user"],
        stdin=stdin,
    )
    return await _stream(process, options["as_json"])


def _command_options(function: Any) -> Any:
    """The options that ``run`` and ``exec`` share."""
    for option in (
        click.option(
            "--json", "as_json", is_flag=True, help="Print the result as one JSON object."
        ),
        click.option("--timeout", type=float, help="Seconds until the command's tree is killed."),
        click.option("-w", "--workdir", help="Folder in the box."),
        click.option("-u", "--user", help="User of the box: name, uid or uid:gid."),
        click.option("-e", "--env", multiple=True, metavar="NAME=VALUE"),
        click.option("-t", "--tty", is_flag=True, help="Run on a terminal."),
        click.option("-i", "--interactive", is_flag=True, help="Pass standard input on."),
    ):
        function = option(function)
    return function


@sandbox.command(context_settings=COMMAND)
@click.option("--image", default="host", show_default=True, help="'host' or a root file system.")
@click.option("-v", "--volume", "volumes", multiple=True, metavar="SOURCE:TARGET[:rw]")
@click.option("--cpus", type=float, default=1.0, show_default=True)
@click.option("--memory", type=int, default=512, show_default=True, metavar="MB")
@click.option("--pids", type=int, default=256, show_default=True)
@click.option("--job", help="Label by which boxes are reaped together.")
@click.option("-d", "--keep", is_flag=True, help="Leave the box alive and print its id to stderr.")
@_command_options
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def run(argv: tuple[str, ...], **options: Any) -> None:
    """Run a command in a new box.

    \b
    Examples:
      baleen sandbox run -- uname -a
      baleen sandbox run -it --image python:3.12 -- bash
      baleen sandbox run -v .:/src --memory 1024 -- make -C /src test
    """

    async def work() -> RunResult:
        box = await Sandbox.create(
            image=options["image"],
            mounts=[_mount(volume) for volume in options["volumes"]],
            cpu=options["cpus"],
            memory_mb=options["memory"],
            pids=options["pids"],
            job=options["job"],
        )
        try:
            return await _use(box, list(argv), options)
        finally:
            if options["keep"]:
                click.echo(box.id, err=True)
                await box.detach()
            else:
                await box.close()

    _finish(_now(work()), options["as_json"])


@sandbox.command("exec", context_settings=COMMAND)
@_command_options
@click.argument("box")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(box: str, argv: tuple[str, ...], **options: Any) -> None:
    """Run a command in a living box.

    \b
    Examples:
      baleen sandbox exec BOX -- ls -l
      baleen sandbox exec -it BOX -- bash
      echo hello | baleen sandbox exec -i BOX -- tee /tmp/hello
    """

    async def work() -> RunResult:
        found = await Sandbox.attach(box)
        try:
            return await _use(found, list(argv), options)
        finally:
            await found.detach()

    _finish(_now(work()), options["as_json"])


@sandbox.command()
@click.argument("box")
def shell(box: str) -> None:
    """Open a shell in a living box."""

    async def work() -> RunResult:
        found = await Sandbox.attach(box)
        try:
            return await _on_terminal(found, ["/bin/sh", "-l"], None)
        finally:
            await found.detach()

    _finish(_now(work()), as_json=False)


@sandbox.command()
@click.option("--json", "as_json", is_flag=True)
def ps(as_json: bool) -> None:
    """List the living boxes."""
    boxes = _now(Sandbox.list())
    if as_json:
        click.echo(json.dumps(boxes))
        return
    click.echo(f"{'BOX':20}{'IMAGE':24}{'JOB':16}{'CREATED':22}STATE")
    for box in boxes:
        created = datetime.fromtimestamp(box["created_at"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        state = "paused" if box["paused"] else "busy" if box["busy"] else "idle"
        click.echo(
            f"{box['box']:20}{box['image'][:23]:24}{box['job'] or '-':16}{created:22}{state}"
        )


@sandbox.command()
@click.option("--json", "as_json", is_flag=True)
@click.option("-f", "--follow", is_flag=True, help="Go on until the box ends.")
@click.argument("box_or_file")
def logs(box_or_file: str, as_json: bool, follow: bool) -> None:
    """Show a box's trajectory; also of one that has ended, or any log file."""
    path = Path(box_or_file)
    if not path.is_file():
        path = _log_of(box_or_file)
    seen = -1
    kind = None
    while True:
        for record in read(path):
            if record.seq > seen:
                seen, kind = record.seq, record.kind
                click.echo(json.dumps(_as_data(record)) if as_json else _as_line(record))
        if not follow or kind is Kind.CLOSE:
            return
        time.sleep(FOLLOW_EVERY_S)


def _log_of(box: str) -> Path:
    try:
        return (Home.default().boxes / box / "log").readlink()
    except OSError:
        raise UsageError(f"no box {box!r} is known", remedy="see `baleen sandbox ps`") from None


def _as_data(record: Record) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    data: dict[str, Any] = plain(record._asdict())
    return data


def _as_line(record: Record) -> str:
    at = datetime.fromtimestamp(record.wall_ns / 1e9, UTC).strftime("%H:%M:%S.%f")[:-3]
    about = ""
    if record.kind == "intent":
        about = " ".join(map(str, record.payload["job"]["argv"]))
    elif record.kind == "result":
        about = (
            f"exit {record.payload['exit_code']} after {record.payload['duration_s'] * 1000:.1f} ms"
        )
    elif "cause" in record.payload:
        about = record.payload["cause"]
    return f"{record.seq:5} {at} {record.kind:10} {about[:120]}"


@sandbox.command()
@click.argument("source")
@click.argument("target")
def cp(source: str, target: str) -> None:
    """Copy files: BOX:/path to the host or back."""

    async def work() -> None:
        is_download = ":" in source
        box_id, _, path = (source if is_download else target).partition(":")
        if not path or (is_download and ":" in target):
            raise UsageError("one side must be BOX:/path, the other a path of the host")
        box = await Sandbox.attach(box_id)
        try:
            await (
                box.files.download(path, target) if is_download else box.files.upload(source, path)
            )
        finally:
            await box.detach()

    _now(work())


async def _with(box_id: str, work: Callable[[Sandbox], Coroutine[Any, Any, T]]) -> T:
    """Does something with a living box and lets go of it."""
    box = await Sandbox.attach(box_id)
    try:
        return await work(box)
    finally:
        await box.detach()


@sandbox.command()
@click.option("--name", help="Name the image.")
@click.argument("box")
def snapshot(box: str, name: str | None) -> None:
    """Keep a box's files as an image; print its digest."""
    click.echo(_now(_with(box, lambda found: found.snapshot(name))))


@sandbox.command()
@click.option("-n", "count", type=click.IntRange(1), default=1, show_default=True)
@click.argument("box")
def fork(box: str, count: int) -> None:
    """Make boxes that begin with a box's files; print their ids."""

    async def work(found: Sandbox) -> list[str]:
        children = await found.fork(count)
        for child in children:
            await child.detach()
        return [child.id for child in children]

    for child in _now(_with(box, work)):
        click.echo(child)


@sandbox.command()
@click.option("--job", help="Every box of this job.")
@click.argument("boxes", nargs=-1)
def pause(boxes: tuple[str, ...], job: str | None) -> None:
    """Stop the processes of boxes where they are."""
    _each(boxes, job, Sandbox.pause, Sandbox.pause_job)


@sandbox.command()
@click.option("--job", help="Every box of this job.")
@click.argument("boxes", nargs=-1)
def resume(boxes: tuple[str, ...], job: str | None) -> None:
    """Let paused boxes go on."""
    _each(boxes, job, Sandbox.resume, Sandbox.resume_job)


def _each(
    boxes: tuple[str, ...],
    job: str | None,
    one: Callable[[Sandbox], Coroutine[Any, Any, None]],
    all_of: Callable[[str], Coroutine[Any, Any, Sequence[str]]],
) -> None:
    if bool(boxes) == (job is not None):
        raise UsageError("name boxes, or a job with --job")
    if job is not None:
        for box in _now(all_of(job)):
            click.echo(box)
    for box in boxes:
        _now(_with(box, one))
        click.echo(box)


@sandbox.command()
@click.argument("boxes", nargs=-1, required=True)
def rm(boxes: tuple[str, ...]) -> None:
    """End boxes."""

    async def work() -> None:
        for box in boxes:
            await (await Sandbox.attach(box)).close()
            click.echo(box)

    _now(work())


@sandbox.command()
@click.option("--job", help="Only the boxes of this job.")
def reap(job: str | None) -> None:
    """End every box of a job, or every box that no client holds."""
    for box in _now(Sandbox.reap(job)):
        click.echo(box)


@sandbox.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=7780, show_default=True, help="0 picks a free one.")
@click.option("--cert", type=click.Path(exists=True), help="TLS certificate; needs --key.")
@click.option("--key", type=click.Path(exists=True))
def serve(host: str, port: int, cert: str | None, key: str | None) -> None:
    """Serve boxes to other machines; the token is BALEEN_SANDBOX_TOKEN or a new one."""
    import secrets
    import ssl

    from baleen.sandbox.edge import Listen, main

    token = os.environ.get("BALEEN_SANDBOX_TOKEN") or secrets.token_urlsafe(32)
    tls = None
    if cert is not None and key is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(cert, key)
    elif host not in ("127.0.0.1", "localhost", "::1"):
        click.echo("warning: without --cert the token and all data travel in the clear", err=True)

    def announce(number: int) -> None:
        scheme = "http" if tls is None else "https"
        click.echo(f"export BALEEN_SANDBOX_URL={scheme}://{host}:{number}")
        if "BALEEN_SANDBOX_TOKEN" not in os.environ:
            click.echo(f"export BALEEN_SANDBOX_TOKEN={token}")
        sys.stdout.flush()

    sys.exit(main(Listen(host, port, token, tls, announce)))
