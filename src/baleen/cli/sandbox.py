"""``baleen sandbox``: boxes from the shell, with Docker's habits.

A command's own exit code passes through: 128 + n after signal n, 124 after the timeout.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from baleen.cli.attached import on_terminal, run_attached
from baleen.cli.box_log import print_log
from baleen.cli.box_options import JSON, command_options, parse_labels, parse_mount, parse_network
from baleen.cli.copying import copy
from baleen.cli.stop import run_until_stopped
from baleen.errors import UsageError
from baleen.sandbox import BoxGoneError, RunResult, Sandbox

T = TypeVar("T")
COMMAND = {"allow_interspersed_args": False}
"""Options end where the command begins: what follows is its own."""


@click.group()
def sandbox() -> None:
    """Make, use and remove boxes."""


def _now(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _finish(box_id: str, result: RunResult, as_json: bool) -> None:
    """Passes output and exit code on."""
    if as_json:
        data = result.to_wire() | {
            name: getattr(result, name).decode("utf-8", "replace") for name in ("stdout", "stderr")
        }
        click.echo(json.dumps({"box": box_id, **data}))
    sys.exit(result.exit_code)


def _print(name: str, found: Sequence[str], as_json: bool) -> None:
    """One a line, or an object with all of them."""
    if as_json:
        click.echo(json.dumps({name: list(found)}))
        return
    for item in found:
        click.echo(item)


@sandbox.command(context_settings=COMMAND)
@click.option("--image", default="host", show_default=True, help="'host' or a root file system.")
@click.option("--workspace", metavar="IMAGE", help="An image that lies on it.")
@click.option("--toolkit", "toolkits", multiple=True, metavar="IMAGE", help="On the workspace.")
@click.option("-v", "--volume", "volumes", multiple=True, metavar="SOURCE:TARGET[:rw]")
@click.option("--cpus", type=float, default=1.0, show_default=True)
@click.option("--memory", type=int, default=512, show_default=True, metavar="MB")
@click.option("--disk", type=int, default=1024, show_default=True, metavar="MB")
@click.option("--pids", type=int, default=256, show_default=True)
@click.option("--network", default="none", show_default=True, metavar="none|public|HOST:PORT,...")
@click.option("--ttl", type=float, default=300, show_default=True, help="Idle seconds it may live.")
@click.option("--job", help="Label by which boxes are reaped together.")
@click.option("-l", "--label", "labels", multiple=True, metavar="NAME=VALUE")
@click.option("--rm", is_flag=True, help="As without: the box ends with the command.")
@click.option("-d", "--keep", is_flag=True, help="Leave the box alive and print its id to stderr.")
@command_options
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def run(argv: tuple[str, ...], **options: Any) -> None:
    """Run a command in a new box, by default the one that the image is for.

    \b
    Examples:
      baleen sandbox run -- uname -a
      baleen sandbox run -it --image python:3.12 -- bash
      baleen sandbox run -v .:/src --memory 1024 -- make -C /src test
    """
    if not argv and options["image"] == "host":
        raise UsageError("image host has no command of its own", remedy="say what to run")
    if options["rm"] and options["keep"]:
        raise UsageError("--rm and --keep contradict each other")

    async def work() -> tuple[str, RunResult]:
        box = await Sandbox.create(
            image=options["image"],
            workspace=options["workspace"],
            toolkits=options["toolkits"],
            mounts=[parse_mount(volume) for volume in options["volumes"]],
            cpu=options["cpus"],
            memory_mb=options["memory"],
            disk_mb=options["disk"],
            pids=options["pids"],
            network=parse_network(options["network"]),
            ttl_idle_s=options["ttl"],
            job=options["job"],
            labels=parse_labels(options["labels"]),
        )
        try:
            return box.id, await run_attached(box, argv or _own_command(box), options)
        finally:
            if options["keep"]:
                click.echo(box.id, err=True)
                await box.detach()
            else:
                await box.close()

    _finish(*run_until_stopped(work()), options["as_json"])


def _own_command(box: Sandbox) -> tuple[str, ...]:
    command = (*box.config.entrypoint, *box.config.cmd)
    if not command:
        raise UsageError("the image has no command of its own", remedy="say what to run")
    return command


@sandbox.command("exec", context_settings=COMMAND)
@command_options
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

    result = run_until_stopped(_with(box, lambda found: run_attached(found, argv, options)))
    _finish(box, result, options["as_json"])


@sandbox.command()
@click.argument("box")
def shell(box: str) -> None:
    """Open a shell in a living box."""
    login = ["/bin/sh", "-l"]
    result = run_until_stopped(_with(box, lambda found: on_terminal(found, login)))
    _finish(box, result, as_json=False)


@sandbox.command()
@JSON
@click.option("-q", "--quiet", is_flag=True, help="Only the ids.")
@click.option("-l", "--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only those.")
def ps(as_json: bool, quiet: bool, labels: tuple[str, ...]) -> None:
    """List the living boxes."""
    boxes = _now(Sandbox.list(parse_labels(labels)))
    if quiet:
        _print("boxes", [box["box"] for box in boxes], as_json)
        return
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per record.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the box ends.")
@click.argument("box_or_file")
def logs(box_or_file: str, as_json: bool, follow: bool) -> None:
    """Show a box's trajectory; also of one that has ended, or any log file."""
    print_log(box_or_file, as_json=as_json, follow=follow)


@sandbox.command()
@click.argument("source")
@click.argument("target")
def cp(source: str, target: str) -> None:
    """Copy a file or folder: BOX:/path to the host or back; into TARGET if that is a folder."""
    is_download = _is_in_box(source)
    if is_download == _is_in_box(target):
        raise UsageError("one side must be BOX:/path, the other a path of the host")
    box_id, _, path = (source if is_download else target).partition(":")
    here = target if is_download else source
    _now(_with(box_id, lambda box: copy(box, path, here, is_download=is_download)))


def _is_in_box(place: str) -> bool:
    """As with docker, a path of the host that holds a colon is written with a / or ./ before it."""
    before, colon, _ = place.partition(":")
    return bool(colon) and "/" not in before and not before.startswith(".")


async def _with(box_id: str, work: Callable[[Sandbox], Coroutine[Any, Any, T]]) -> T:
    """Does something with a living box and lets go of it."""
    box = await Sandbox.attach(box_id)
    try:
        return await work(box)
    finally:
        await box.detach()


@sandbox.command()
@click.option("--name", help="Name the image.")
@JSON
@click.argument("box")
def snapshot(box: str, name: str | None, as_json: bool) -> None:
    """Keep a box's files as an image; print its digest."""
    digest = _now(_with(box, lambda found: found.snapshot(name)))
    click.echo(json.dumps({"name": name or digest, "digest": digest}) if as_json else digest)


@sandbox.command()
@click.option("-n", "count", type=click.IntRange(1), default=1, show_default=True)
@JSON
@click.argument("box")
def fork(box: str, count: int, as_json: bool) -> None:
    """Make boxes that begin with a box's files; print their ids."""

    async def work(found: Sandbox) -> list[str]:
        children = await found.fork(count)
        for child in children:
            await child.detach()
        return [child.id for child in children]

    _print("boxes", _now(_with(box, work)), as_json)


@sandbox.command()
@click.option("--job", help="Every box of this job.")
@JSON
@click.argument("boxes", nargs=-1)
def pause(boxes: tuple[str, ...], job: str | None, as_json: bool) -> None:
    """Stop the processes of boxes where they are."""
    _print("boxes", _each(boxes, job, Sandbox.pause, Sandbox.pause_job), as_json)


@sandbox.command()
@click.option("--job", help="Every box of this job.")
@JSON
@click.argument("boxes", nargs=-1)
def resume(boxes: tuple[str, ...], job: str | None, as_json: bool) -> None:
    """Let paused boxes go on."""
    _print("boxes", _each(boxes, job, Sandbox.resume, Sandbox.resume_job), as_json)


def _each(
    boxes: tuple[str, ...],
    job: str | None,
    one: Callable[[Sandbox], Coroutine[Any, Any, None]],
    all_of: Callable[[str], Coroutine[Any, Any, Sequence[str]]],
) -> Sequence[str]:
    if bool(boxes) == (job is not None):
        raise UsageError("name boxes, or a job with --job")
    if job is not None:
        return _now(all_of(job))

    async def work() -> None:
        for box in boxes:
            await _with(box, one)

    _now(work())
    return boxes


@sandbox.command()
@click.option("-f", "--force", is_flag=True, help="Pass over boxes that have ended already.")
@JSON
@click.argument("boxes", nargs=-1, required=True)
def rm(boxes: tuple[str, ...], force: bool, as_json: bool) -> None:
    """End boxes."""

    async def work() -> list[str]:
        ended = []
        for box in boxes:
            try:
                await (await Sandbox.attach(box)).close()
                ended.append(box)
            except BoxGoneError:
                if not force:
                    raise
        return ended

    _print("boxes", _now(work()), as_json)


@sandbox.command()
@click.option("--job", help="Only the boxes of this job.")
@JSON
def reap(job: str | None, as_json: bool) -> None:
    """End every box of a job, or every box that no client holds."""
    _print("boxes", _now(Sandbox.reap(job)), as_json)


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
