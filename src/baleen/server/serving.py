"""From a command line to a running server."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from baleen.assets import nano_dir
from baleen.errors import CheckpointError, MissingExtraError, UsageError
from baleen.protocol.errors import RevisionError
from baleen.protocol.revision import detect_revision
from baleen.server.base import Upstream
from baleen.server.config import GatewayConfig

if TYPE_CHECKING:
    from baleen.server.http import HttpServer

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
    upstream_key: str | None = None
    """API key that the upstream asks for."""
    host: str = "127.0.0.1"
    port: int = 8000
    config: GatewayConfig = field(default_factory=GatewayConfig)


async def run(options: ServeOptions, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; `ready` is told the address.

    What has begun is finished then; a second signal breaks it off.

    Raises:
        KeyboardInterrupt: there was a second signal.
        BaleenError: model or upstream cannot be used.
        UsageError: the address cannot be listened on.
    """
    server = await open_server(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        server.is_hurried = stop.is_set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        port = await _listen(server, options)
        # What is loaded by now stays; to go over it again and again only holds streams up.
        gc.collect()
        gc.freeze()
        ready(f"http://{options.host}:{port}")
        await stop.wait()
        if server.gateway.running:
            count = len(server.gateway.running)
            print(
                f"baleen: finishing {count} {'answer' if count == 1 else 'answers'}, taking no"
                " more; Ctrl-C again to end now",
                file=sys.stderr,
            )
    finally:
        gc.unfreeze()  # or the interpreter's end takes what is frozen for leaked
        await server.stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if server.is_hurried:
        raise KeyboardInterrupt


async def _listen(server: HttpServer, options: ServeOptions) -> int:
    """Start; returns the port.

    Raises:
        UsageError: somebody else listens there, or this machine has no such address.
    """
    try:
        return await server.start(options.host, options.port)
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: "stop who listens there, or take another port; --port 0 finds one",
            errno.EADDRNOTAVAIL: "give an address of this machine, or 0.0.0.0 for all of them",
            errno.EACCES: "ports below 1024 need root",
        }
        raise UsageError(
            f"cannot listen on {options.host}:{options.port}: {os.strerror(error.errno or 0)}",
            remedy=remedies.get(error.errno or 0, "give another --host or --port"),
        ) from error


async def open_server(options: ServeOptions) -> HttpServer:
    """A server that is not started yet; it is to be stopped all the same.

    Raises:
        MissingExtraError: a package is missing.
        BaleenError: model or upstream cannot be used.
    """
    try:
        from baleen.server.gateway import Gateway
        from baleen.server.http import HttpServer
        from baleen.server.observing.tracing import tracer_from_environment
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serving needs {error.name}", remedy="pip install 'baleen[serve]'"
        ) from error
    upstream, tokenizer = await _open(options)
    return HttpServer(Gateway(options.config, tokenizer, upstream, tracer_from_environment()))


async def _open(options: ServeOptions) -> tuple[Upstream, Any]:
    if options.upstream is None:
        from baleen.server.upstreams.local import LocalUpstream

        local = LocalUpstream.load(options.model, options.config.revision)
        return local, local.tokenizer
    from baleen.server.upstreams.http_client import EngineClient
    from baleen.server.upstreams.opening import open_upstream

    tokenizer = _tokenizer(options.model)
    client = EngineClient(
        options.upstream,
        api_key=options.upstream_key,
        stall_timeout_s=options.config.stall_timeout_s,
    )
    try:
        upstream = await open_upstream(
            client,
            tokenizer,
            kind=options.kind,
            revision=options.config.revision,
            model=options.upstream_model,
        )
    except BaseException:
        await client.close()
        raise
    return upstream, tokenizer


def _tokenizer(model: str) -> Any:
    """The tokenizer of a model folder.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    folder = nano_dir() if model == NANO else Path(model)
    path = folder / "tokenizer.json" if folder.is_dir() else folder
    if not path.is_file():
        raise CheckpointError(
            f"there is no tokenizer at {path}",
            remedy="name the folder of the model that the upstream serves",
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for any defect
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def defaults_for(model: str) -> GatewayConfig:
    """The configuration that suits a model."""
    config = GatewayConfig(model_name=model if model == NANO else Path(model).resolve().name)
    if model == NANO:
        # It was trained at this effort, and answers greedily.
        return replace(config, effort="low", forces_sampling=False, temperature=0.0)
    try:
        return replace(config, revision=detect_revision(model).value)
    except RevisionError:
        return config


def state_dir_for(model_name: str) -> Path:
    """Where the turns of a model are kept; several gateways of one user may share it."""
    home = os.environ.get("BALEEN_HOME")
    base = Path(home) if home else Path(platformdirs.user_data_dir("baleen"))
    name = "".join(char if char.isalnum() or char in "-._" else "_" for char in model_name)
    return base / "serve" / (name.lstrip(".") or "model")
