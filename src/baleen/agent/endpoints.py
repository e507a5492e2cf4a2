"""Which endpoint and which prompt a configuration means."""

from __future__ import annotations

from pathlib import Path

from baleen.agent.base import Endpoint
from baleen.agent.config import NANO, RunConfig
from baleen.agent.editor import Editor
from baleen.agent.prompt import GENERAL, Prompt
from baleen.agent.prompt import NANO as NANO_PROMPT
from baleen.agent.tools import Bash, Tool, Toolbox


def prompt_for(config: RunConfig) -> Prompt:
    """System text and tools for a configuration."""
    name = config.prompt
    if name == "auto":
        name = "nano" if is_small(config.model) else "general"
    return NANO_PROMPT if name == "nano" else GENERAL


def is_small(model: str) -> bool:
    """Whether a model is the bundled checkpoint or one that was trained like it."""
    return model == NANO or (Path(model) / "training.json").is_file()


def toolbox_for(prompt: Prompt) -> Toolbox:
    """The tools that a prompt offers, ready to run."""
    tools: list[Tool] = []
    for schema in prompt.tools:
        is_editor = schema["function"]["name"] == Editor.schema["function"]["name"]
        tools.append(Editor() if is_editor else Bash(schema))
    return Toolbox(tools)


async def open_endpoint(config: RunConfig, prompt: Prompt) -> Endpoint:
    """Load the model or reach it.

    Raises:
        EndpointError: an endpoint that cannot be reached, or does not say which model to use.
        CheckpointError: a model folder that cannot be loaded.
        MissingExtraError: torch is needed and not installed.
    """
    if config.is_remote:
        from baleen.agent.openai import OpenAIEndpoint

        return await OpenAIEndpoint.connect(
            config.model,
            config.model_name,
            tools=prompt.tools,
            temperature=config.temperature,
            seed=config.seed,
        )
    from baleen.agent.local import LocalEndpoint

    return LocalEndpoint.load(
        config.model, prompt, temperature=config.temperature or 0.0, seed=config.seed or 0
    )
