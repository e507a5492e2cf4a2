"""`baleen serve`: HTTP doors for agents, in front of a model here or an engine elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

REVISIONS = ("preview", "0731", "v4.1")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.argument("model", default="nano")
@click.option("--upstream", metavar="URL", help="Engine that samples: vLLM, SGLang, llama-server.")
@click.option(
    "--upstream-kind",
    type=click.Choice(["auto", "vllm", "sglang", "llama"]),
    default="auto",
    show_default=True,
)
@click.option("--upstream-model", metavar="NAME", help="Model to ask the engine for.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8000,
    show_default=True,
    help="0 takes any free port.",
)
@click.option("--served-model-name", metavar="NAME", help="Name that clients see.")
@click.option("--api-key", multiple=True, metavar="KEY", help="Let these in and nobody else.")
@click.option(
    "--max-model-len", type=click.IntRange(1), metavar="TOKENS", help="Let no context be longer."
)
@click.option("--revision", type=click.Choice(REVISIONS), help="Of the prompt.")
@click.option("--state", metavar="DIR", help="Where turns and tokens are kept.")
@click.option("--trace", metavar="DIR", help="Write every exchange down there, in tokens.")
@click.option("--no-state", is_flag=True, help="Keep nothing beyond this process.")
@click.option("--max-running", type=click.IntRange(1), help="Answers at once.  [default: 1024]")
@click.option(
    "--thinking-budget",
    type=click.IntRange(0),
    metavar="TOKENS",
    help="Close reasoning after these.",
)
@click.option(
    "--stall-timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Patience with the engine.",
)
@click.option(
    "--tool-repair",
    type=click.Choice(["off", "schema", "all"]),
    default="schema",
    show_default=True,
)
@click.option("--recovery/--no-recovery", default=True, help="Decode stalled turns once more.")
@click.option("--grammar/--no-grammar", default=True, help="Hold calls to their schemas.")
@click.option(
    "--reasoning-fields",
    type=click.Choice(["deepseek", "both"]),
    default="deepseek",
    show_default=True,
    help="reasoning_content alone, or vLLM's reasoning too.",
)
@click.option(
    "--strict-api",
    is_flag=True,
    help="Refuse what the hosted API refuses: lost reasoning, forced calls while thinking.",
)
def serve(model: str, host: str, port: int, **options: Any) -> int:
    """Serve MODEL, a folder or `nano`, to OpenAI and Anthropic clients.

    With --upstream the tokens come from an engine elsewhere and MODEL names the folder with its
    tokenizer. The engine's own API key is read from BALEEN_UPSTREAM_KEY.

    \b
    Examples:
      baleen serve                                              # the bundled checkpoint
      baleen serve DeepSeek-V4-Flash --upstream http://gpu:8000  # vLLM or SGLang
      baleen serve ./v4-tokenizer --upstream http://localhost:8080 --upstream-kind llama
      baleen serve --host 0.0.0.0 --api-key "$KEY" --thinking-budget 8192
    """
    from baleen.server.serving import ServeOptions, run

    logging.basicConfig(level=logging.INFO, format="baleen: %(message)s")
    config = _config(model, options)
    if host not in _LOOPBACK and not config.api_keys:
        click.echo(
            f"baleen: WARNING: listening on {host} without --api-key: whoever reaches this machine"
            " can use the model",
            err=True,
        )
    serving = ServeOptions(
        model=model,
        upstream=options["upstream"],
        kind=options["upstream_kind"],
        upstream_model=options["upstream_model"],
        upstream_key=os.environ.get("BALEEN_UPSTREAM_KEY"),
        host=host,
        port=port,
        config=config,
    )
    asyncio.run(run(serving, lambda url: _say(config.model_name, url)))
    return 0


def _say(name: str, url: str) -> None:
    click.echo(f"baleen: serving {name} at {url}", err=True)


def _config(model: str, options: dict[str, Any]) -> Any:
    """The model's configuration with what the command line says."""
    from baleen.server.serving import defaults_for, state_dir_for

    config = defaults_for(model)
    given = {
        "model_name": options["served_model_name"],
        "revision": options["revision"],
        "api_keys": options["api_key"] or None,
        "max_running": options["max_running"],
        "thinking_budget": options["thinking_budget"],
        "stall_timeout_s": options["stall_timeout"],
        "repair": options["tool_repair"],
        "recovers": options["recovery"],
        "uses_grammar": options["grammar"],
        "max_model_len": options["max_model_len"],
        "trace_dir": Path(options["trace"]) if options["trace"] else None,
        "emits_reasoning_twice": options["reasoning_fields"] == "both",
        "rejects_missing_reasoning": options["strict_api"],
        "refuses_forced_thinking": options["strict_api"],
    }
    config = replace(config, **{key: value for key, value in given.items() if value is not None})
    if options["no_state"]:
        return config
    state = options["state"]
    return replace(config, state_dir=Path(state) if state else state_dir_for(config.model_name))
