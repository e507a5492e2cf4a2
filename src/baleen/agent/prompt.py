"""What an agent is told before the question: a system line and the tools it may call.

The bundled checkpoint was trained on exactly `NANO`; other models get `GENERAL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baleen.agent.editor import EDIT_TOOL
from baleen.agent.observation import DEFAULT_LIMIT_CHARS

WORKDIR = "/work"
"""Where the mounted folder lies in the box, and where commands start."""

BASH_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "bash",
        "description": "Run a command.",
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "string"}},
            "required": ["command"],
        },
    },
}
"""The only tool of the small checkpoint; short, because its prompt is a quarter of its context."""


@dataclass(frozen=True)
class Prompt:
    """System text, tools in Chat Completions form, and how much of an output is shown."""

    system: str
    tools: tuple[Mapping[str, Any], ...]
    observation_limit_chars: int
    revision: str = "0731"
    effort: str | None = None
    """Reasoning effort of the encoder; None is its default."""

    def messages(self, question: str) -> list[dict[str, Any]]:
        """The conversation before the first turn of the model."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": question},
        ]


NANO_SYSTEM = "Answer with the bash tool."

NANO = Prompt(
    system=NANO_SYSTEM,
    tools=(BASH_TOOL,),
    observation_limit_chars=240,  # a few grep lines: about 100 tokens of its small context
    effort="low",  # the other efforts put a paragraph in front of the prompt
)

GENERAL_SYSTEM = (
    "You work in a sandbox through tools. Find out what the user asks by running commands; do not "
    f"guess. The user's files, if there are any, are in {WORKDIR}, where commands start. There is "
    "no network. When you know the answer, reply with it and nothing else."
)

GENERAL_BASH_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "bash",
        "description": (
            "Run a command with bash and see its output. Each call starts a new shell in "
            f"{WORKDIR}; files stay, variables do not."
        ),
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "string", "description": "What to run."}},
            "required": ["command"],
        },
    },
}

GENERAL = Prompt(
    system=GENERAL_SYSTEM,
    tools=(GENERAL_BASH_TOOL, EDIT_TOOL),
    observation_limit_chars=DEFAULT_LIMIT_CHARS,
)
