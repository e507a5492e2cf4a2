"""From a command line to a running server."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baleen.errors import ConfigError, MissingExtraError
from baleen.server.base import Upstream
from baleen.server.config import GatewayConfig

NANO = "nano"


@dataclass(frozen=True)
class ServeOptions:
    """What is served and where."""

    model: str = NANO
    """`nano`, or a model folder; with an upstream only its tokenizer and encoder are read."""
    upstream: str | None = None
    kind: str = "auto"
    """Of the upstream: vllm, sglang, llama; auto asks it."""
    upstream_model: str | None = None
    """Name that the upstream knows the model by."""
    host: str = "127.0.0.1"
    port: int = 8000
    config: GatewayConfig = field(default_factory=GatewayConfig)


async def run(options: ServeOptions, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; `ready` is told the address.

    Raises:
        BaleenError: model or upstream cannot be used.
        OSError: the address cannot be listened on.
    """
    try:
        from baleen.server.gateway import Gateway
        from baleen.server.http import HttpServer
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serving needs {error.name}", remedy="pip install 'baleen[serve]'"
        ) from error
    upstream, tokenizer = _open(options)
    server = HttpServer(Gateway(options.config, tokenizer, upstream))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        port = await server.start(options.host, options.port)
        ready(f"http://{options.host}:{port}")
        await stop.wait()
        if server.gateway.running:
            count = len(server.gateway.running)
            print(f"baleen: finishing {count} answers, taking no more", file=sys.stderr)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        await server.stop()


def _open(options: ServeOptions) -> tuple[Upstream, Any]:
    if options.upstream is None:
        from baleen.server.upstreams.local import LocalUpstream

        local = LocalUpstream.load(options.model)
        return local, local.tokenizer
    raise ConfigError("remote upstreams do not exist yet")


def defaults_for(model: str) -> GatewayConfig:
    """The configuration that suits a model."""
    config = GatewayConfig(model_name=model if model == NANO else Path(model).resolve().name)
    if model == NANO:
        # It was trained at this effort, and answers greedily.
        return replace(config, effort="low", forces_sampling=False, temperature=0.0)
    return config
