"""``baleen image``: images of boxes, from files, registries, Dockerfiles and boxes."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import click

from baleen.sandbox.home import Home
from baleen.sandbox.images.base import short
from baleen.sandbox.images.store import Store

PROGRESS_EVERY_S = 0.2
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def image() -> None:
    """Make, fetch and remove images."""


def _store() -> Store:
    home = Home.default()
    home.prepare()
    return Store(home.images)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _made(name: str, digest: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"name": name, "digest": digest}))
    else:
        click.echo(digest)


class _Bytes:
    """Progress of downloads: one line that changes on a terminal, lines in a pipe."""

    def __init__(self) -> None:
        self._shown_at = 0.0
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, blob: str, here: int, size: int) -> None:
        now = time.monotonic()
        if here < size and now - self._shown_at < (PROGRESS_EVERY_S if self._is_terminal else 5):
            return
        self._shown_at = now
        text = f"{blob} {here >> 10}/{size >> 10} KiB"
        click.echo(f"\r{text}\033[K" if self._is_terminal else text, nl=here >= size, err=True)


@image.command("import")
@click.argument("source", type=click.Path(exists=True))
@click.argument("name")
@click.option("--at", default="/", help="Where in a box a folder's or tarball's content lies.")
@click.option("--ref", help="Which image of an OCI layout that holds several.")
@click.option("--as-root", is_flag=True, help="Everything in it belongs to root.")
@click.option("--platform", metavar="ARCH", help="amd64, arm64; this machine's by default.")
@JSON
def import_(source: str, name: str, as_json: bool, **options: Any) -> None:
    """Make an image of a folder, a tarball or an OCI layout."""
    from baleen.sandbox.images.importing import import_image

    digest = import_image(
        _store(),
        source,
        name,
        at=options["at"],
        ref=options["ref"],
        only_root=options["as_root"],
        architecture=options["platform"],
        progress=_say,
    )
    _made(name, digest, as_json)


@image.command()
@click.argument("name")
@click.option("--as", "alias", metavar="NAME", help="Its name here.")
@click.option("--platform", metavar="ARCH", help="amd64, arm64; this machine's by default.")
@click.option("--insecure", is_flag=True, help="Plain HTTP; the default only for this machine.")
@JSON
def pull(name: str, alias: str | None, platform: str | None, insecure: bool, as_json: bool) -> None:
    """Fetch an image from a registry; a broken transfer goes on where it stopped."""
    from baleen.sandbox.images.pulling import pull as pull_image

    digest = pull_image(
        _store(), name, alias=alias, architecture=platform, insecure=insecure, progress=_Bytes()
    )
    _made(alias or name, digest, as_json)


@image.command()
@click.argument("context", type=click.Path(exists=True, file_okay=False))
@click.option("-t", "--tag", "name", help="The image's name.")
@click.option("-f", "--file", "dockerfile", type=click.Path(), help="CONTEXT/Dockerfile.")
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME=VALUE")
@click.option("--target", help="The stage to build.")
@click.option("--no-cache", is_flag=True, help="Run every step anew.")
@click.option("--network", default="none", show_default=True, help="Of the boxes of RUN steps.")
@click.option("--memory", type=int, default=2048, show_default=True, metavar="MB")
@click.option("--disk", type=int, default=8192, show_default=True, metavar="MB")
@JSON
def build(context: str, name: str | None, as_json: bool, **options: Any) -> None:
    """Build an image from a Dockerfile; its steps run in boxes.

    \b
    Examples:
      baleen image build -t mine .
      baleen image build -t mine --target test --build-arg VERSION=3 --network public .
    """
    import asyncio

    from baleen.sandbox.images.dockerfile.builder import Options
    from baleen.sandbox.images.dockerfile.builder import build as build_image

    pairs = [pair.partition("=") for pair in options["build_args"]]
    given = {key: value if equals else os.environ.get(key, "") for key, equals, value in pairs}
    chosen = Options(
        build_args=given,
        target=options["target"],
        use_cache=not options["no_cache"],
        network=options["network"],
        memory_mb=options["memory"],
        disk_mb=options["disk"],
    )
    _store()
    digest = asyncio.run(
        build_image(
            Home.default(),
            context,
            name,
            dockerfile=options["dockerfile"],
            options=chosen,
            progress=_say,
        )
    )
    _made(name or digest, digest, as_json)


@image.command()
@click.argument("box")
@click.argument("name")
@JSON
def commit(box: str, name: str, as_json: bool) -> None:
    """Make an image of a living box's files."""
    import asyncio

    from baleen.sandbox import Sandbox

    async def work() -> str:
        found = await Sandbox.attach(box)
        try:
            return await found.snapshot(name)
        finally:
            await found.detach()

    _made(name, asyncio.run(work()), as_json)


@image.command()
@JSON
def ls(as_json: bool) -> None:
    """List the images, what they take, and what they take alone."""
    from baleen.sandbox.images.usage import usage

    found = usage(_store())
    if as_json:
        click.echo(json.dumps([x._asdict() | {"shared_bytes": x.shared_bytes} for x in found]))
        return
    click.echo(f"{'NAME':40}{'DIGEST':14}{'LAYERS':>7}{'MB':>9}{'SHARED':>9}{'UNIQUE':>9}")
    for x in found:
        sizes = "".join(f"{n / 1e6:9.1f}" for n in (x.bytes, x.shared_bytes, x.unique_bytes))
        click.echo(f"{x.name:40}{short(x.digest):14}{x.layers:7}{sizes}")


@image.command("inspect")
@click.argument("name")
def inspect_(name: str) -> None:
    """Print an image's layers and config as JSON."""
    store = _store()
    digest = store.lookup(name)
    manifest = json.loads(store.image(digest).manifest())
    click.echo(json.dumps({"digest": digest, **manifest}, indent=2))


@image.command()
@click.argument("names", nargs=-1, required=True)
@JSON
def rm(names: tuple[str, ...], as_json: bool) -> None:
    """Forget images by name; `gc` frees what nothing needs any more."""
    store = _store()
    for name in names:
        store.untag(name)
    if as_json:
        click.echo(json.dumps({"removed": list(names)}))


@image.command()
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would go.")
@click.option(
    "--cache-days", type=float, default=7.0, show_default=True, help="Age of build steps that stay."
)
@JSON
def gc(dry_run: bool, cache_days: float, as_json: bool) -> None:
    """Remove what no name, no box and no running pull or build needs."""
    from baleen.sandbox.images.gc import collect

    _store()
    found = collect(Home.default(), cache_days=cache_days, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(vars(found)))
        return
    verb = "would free" if dry_run else "freed"
    click.echo(
        f"{verb} {found.freed_bytes / 1e6:.1f} MB: {len(found.images)} images, "
        f"{len(found.layers)} layers, {found.cached_steps} build steps"
    )
