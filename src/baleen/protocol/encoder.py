"""Messages in, prompt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from baleen.protocol.chat import read_messages
from baleen.protocol.errors import MessageError, RevisionError, ToolSchemaError
from baleen.protocol.layout import Layout, response_schema
from baleen.protocol.layout_api import write_api
from baleen.protocol.layout_checkpoint import write_checkpoint
from baleen.protocol.message import Message, Role
from baleen.protocol.prompt import Prompt
from baleen.protocol.revision import Effort, Flavor, Revision, effort_prefix
from baleen.protocol.segments import SegmentWriter
from baleen.protocol.tools import Tool, read_tools


class Encoder:
    """Encodes conversations for one prompt revision, in one flavor. Holds no state."""

    def __init__(self, revision: str = "0731", flavor: str = "api") -> None:
        try:
            self.revision = Revision(revision)
        except ValueError as error:
            names = ", ".join(known.value for known in Revision)
            raise RevisionError(
                f"unknown prompt revision {revision!r}", remedy=f"use one of {names}"
            ) from error
        try:
            self.flavor = Flavor(flavor)
        except ValueError as error:
            raise RevisionError(
                f"unknown encoder flavor {flavor!r}", remedy="use api or checkpoint"
            ) from error

    def encode(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        tool_choice: Any = "auto",
        thinking: bool = True,
        effort: Effort = None,
        response_format: Mapping[str, Any] | None = None,
        continue_final: bool = False,
        keep_reasoning: bool = False,
    ) -> Prompt:
        """Encode messages (dicts as in Chat Completions, or :class:`Message`) for one answer.

        ``effort`` None means the flavor's default, ``"none"`` switches thinking off.
        ``continue_final`` leaves the last assistant message open for the model to go on with,
        inside its reasoning if it has no content yet. ``keep_reasoning`` keeps what earlier turns
        thought even without tools, as the checkpoint encoder does with ``drop_thinking=False``.

        Raises:
            MessageError: a message or request field that cannot be encoded.
            ToolSchemaError: a tool definition that cannot be rendered.
            EffortError: an effort that this revision does not know.
        """
        if effort == "none" and self.flavor is Flavor.API:
            thinking, effort = False, None
        read = read_messages(messages, self.flavor)
        choice = "auto" if tool_choice is None else tool_choice
        declared = [] if choice == "none" else read_tools(tools, self.flavor)
        forced = forced_tool(choice, declared)
        read = _mark_continuation(read, continue_final)
        start = _start(read[-1], thinking)
        force_block = forced is not None and bool(declared) and not thinking and start is None
        layout = Layout(
            revision=self.revision,
            flavor=self.flavor,
            thinking=thinking,
            effort_text=effort_prefix(self.revision, self.flavor, effort) if thinking else "",
            tools=[t for t in declared if not force_block or forced in ("", t.name)],
            response_schema=response_schema(response_format, self.flavor),
            keep_reasoning=keep_reasoning,
            force_block=force_block,
        )
        out = SegmentWriter()
        if self.flavor is Flavor.API or self.revision is Revision.V41:
            write_api(out, read, layout)
        else:
            write_checkpoint(out, read, layout)
        return Prompt(
            segments=out.finish(),
            thinking=thinking,
            tools=tools,
            start="calls" if force_block else start,
            calls=choice != "none",
            tool_choice=choice,
        )


def forced_tool(choice: Any, declared: Sequence[Tool]) -> str | None:
    """The tool a choice forces: None for no force, an empty string for any, else its name."""
    if choice in ("auto", "none"):
        return None
    if choice == "required":
        return ""
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise MessageError(
            f"tool_choice {choice!r} is not understood",
            field="tool_choice",
            remedy="use auto, none, required, or an object of type function that names one",
        )
    if name not in [tool.name for tool in declared]:
        raise ToolSchemaError(
            f"Invalid value for 'tool_call': no function named '{name}' was specified in the"
            " 'tools' parameter."
        )
    return name


def _mark_continuation(messages: list[Message], continue_final: bool) -> list[Message]:
    final = messages[-1]
    for message in messages:
        if message.is_prefix and message is not final:
            raise _misplaced_prefix(message)
    if not (continue_final or final.is_prefix):
        return messages
    if final.role is not Role.ASSISTANT:
        raise _misplaced_prefix(final)
    if final.calls:
        raise MessageError(
            "Function call should not be used with prefix", index=final.index, field="tool_calls"
        )
    return [*messages[:-1], replace(final, is_prefix=True)]


def _misplaced_prefix(message: Message) -> MessageError:
    return MessageError(
        "Invalid completion message: prefix set true with message which is not final message or"
        " message role is not assistant",
        index=message.index,
        field="prefix",
    )


def _start(final: Message, thinking: bool) -> str | None:
    """Where the answer goes on; an empty prefix is the start of a turn."""
    if not final.is_prefix:
        return None
    if final.content:
        return "content"
    return "reasoning" if thinking and final.reasoning else None
