"""``baleen mcp``: tools on a sandbox for any MCP client."""

from __future__ import annotations

import asyncio

import click

from baleen.cli.box_options import parse_mount


@click.command()
@click.option("--image", default="host", show_default=True, help="'host', a name, or a folder.")
@click.option("--mount", "mounts", multiple=True, metavar="SOURCE:TARGET[:rw]")
@click.option("--network", default="none", show_default=True)
@click.option("--cpus", type=float, default=1.0, show_default=True)
@click.option("--memory", type=int, default=2048, show_default=True, metavar="MB")
@click.option("--disk", type=int, default=4096, show_default=True, metavar="MB")
def mcp(
    image: str, mounts: tuple[str, ...], network: str, cpus: float, memory: int, disk: int
) -> None:
    """Serve bash, read_file, write_file and edit on a sandbox, over stdin and stdout.

    \b
    Examples:
      baleen mcp --mount .:/workspace:rw
      claude mcp add box -- baleen mcp --mount "$PWD:/workspace:rw"
    """
    from baleen.sandbox.adapters.mcp import serve_stdio
    from baleen.sandbox.adapters.options import BoxOptions

    options = BoxOptions(
        image=image,
        mounts=tuple(parse_mount(text) for text in mounts),
        network=network,
        cpu=cpus,
        memory_mb=memory,
        disk_mb=disk,
    )
    asyncio.run(serve_stdio(options))
