"""`baleen serve`: HTTP doors for agents, in front of a model here or an engine elsewhere."""

from __future__ import annotations

import asyncio
import logging

import click


@click.command()
@click.argument("model", default="nano")
@click.option("--upstream", metavar="URL", help="Engine that samples: vLLM, SGLang, llama-server.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes any free port.")
def serve(model: str, upstream: str | None, host: str, port: int) -> int:
    """Serve MODEL, a folder or `nano`, to OpenAI and Anthropic clients.

    With --upstream the tokens come from an engine elsewhere and MODEL names the folder with its
    tokenizer.
    """
    from baleen.server.serving import ServeOptions, defaults_for, run

    logging.basicConfig(level=logging.INFO, format="baleen: %(message)s")
    options = ServeOptions(
        model=model, upstream=upstream, host=host, port=port, config=defaults_for(model)
    )
    asyncio.run(run(options, lambda url: click.echo(f"baleen: serving {model} at {url}", err=True)))
    return 0
