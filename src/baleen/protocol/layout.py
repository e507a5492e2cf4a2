"""What both published prompt layouts share; each has a module of its own.

They agree on every conversation that a client normally sends and differ at the edges: the
checkpoint encoder hangs the assistant header on the turn before it, the API on the assistant turn
itself; the API gathers system texts at the front, sorts parallel calls by id, and always ends with
a fresh assistant header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from baleen.protocol import jsontext, tokens
from baleen.protocol.errors import MessageError, expect_object
from baleen.protocol.markup import Dialect, dialect_of, write_tools
from baleen.protocol.message import Message
from baleen.protocol.revision import Flavor, Revision
from baleen.protocol.segments import SegmentWriter
from baleen.protocol.tools import Tool

_SCHEMA_ONLY: Final = (
    "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
)
_OBJECT_ONLY: Final = (
    "\n\nYou are a helpful assistant designed to output JSON.\n"
    "## Response Format:\n\nReply with JSON object ONLY."
)


@dataclass(frozen=True, slots=True)
class Layout:
    """What stays the same over all turns of one prompt."""

    revision: Revision
    flavor: Flavor
    thinking: bool
    effort_text: str
    """Empty outside thinking."""
    tools: Sequence[Tool]
    response_schema: str | None
    """JSON text for the response block; empty for any JSON object, None for no block."""
    keep_reasoning: bool
    """Keep what earlier turns thought even without tools."""
    force_block: bool
    """Start the model inside a tool-call block."""

    @property
    def dialect(self) -> Dialect:
        """The words of this revision's tags."""
        return dialect_of(self.revision)


def printer(revision: Revision, flavor: Flavor) -> Callable[[Any], str]:
    """How numbers are spelled in schemas and arguments; only the API's V4 has ways of its own."""
    is_api_v4 = flavor is Flavor.API and revision is not Revision.V41
    return jsontext.dumps_api if is_api_v4 else jsontext.dumps


def response_schema(response_format: Any, revision: Revision, flavor: Flavor) -> str | None:
    """JSON text that the response block shows; empty for any object, None for no block.

    Raises:
        MessageError: it is no response format, or no JSON value.
    """
    wanted = expect_object(response_format, "response_format")
    dumps = printer(revision, flavor)
    kind = wanted.get("type")
    shown: Any = wanted
    if flavor is Flavor.API:
        if kind == "json_object":
            return dumps({"type": kind}) if revision is Revision.V41 else ""
        if kind != "json_schema":
            if wanted and kind not in ("text", "regex"):
                raise MessageError(
                    f"unknown variant `{kind}`, expected one of `json_object`, `json_schema`,"
                    " `regex`, `text`",
                    field="response_format.type",
                )
            return None
        holder = expect_object(wanted.get("json_schema"), "response_format.json_schema")
        shown = holder.get("schema")
        if not isinstance(shown, Mapping | bool):
            raise MessageError(
                f"Invalid json schema: {shown!r:.80} is not an object",
                field="response_format.json_schema.schema",
            )
    try:
        return dumps(shown) if wanted else None
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(f"no JSON value: {error}", field="response_format") from error


def write_response_format(out: SegmentWriter, schema: str) -> None:
    """Write the response block and the separator before it."""
    out.text(_SCHEMA_ONLY + schema if schema else _OBJECT_ONLY)


def write_suffixes(out: SegmentWriter, layout: Layout) -> None:
    """What the request hangs on the first system text: tools, then the response format."""
    if layout.tools:
        out.text("\n\n")
        write_tools(out, [tool.line for tool in layout.tools], layout.dialect)
    if layout.response_schema is not None:
        write_response_format(out, layout.response_schema)


def write_user(out: SegmentWriter, turn: Message) -> None:
    """A user turn of texts and tool results; results are not escaped in any way."""
    out.special(tokens.USER)
    for place, block in enumerate(turn.blocks or ()):
        if place:
            out.text("\n\n")
        if block.images:
            out.text("" if block.call_id is None else "<tool_result>")
            write_text(out, block.text, block.images)
            out.text("" if block.call_id is None else "</tool_result>")
        elif block.call_id is None:
            out.text(block.text)
        else:
            out.text(f"<tool_result>{block.text}</tool_result>")


def write_text(out: SegmentWriter, text: str, images: Sequence[int]) -> None:
    """Text with image placeholders at the given places; the same spelling elsewhere is text."""
    position = 0
    for start in images:
        end = text.index("｜>", start) + 2
        out.text(text[position:start])
        out.special(text[start:end])
        position = end
    out.text(text[position:])


def write_replay(out: SegmentWriter, turn: Message, *, thinks: bool) -> bool:
    """Write a turn as it was sampled; False if it was not, or cannot do without its reasoning.

    ``thinks`` says that the turn's header opens the reasoning.
    """
    replay = turn.replay
    if replay is None or (replay.is_open_ended and not thinks):
        return False
    if thinks and replay.reasoning:
        out.replay(replay.reasoning, replay.reasoning_ids)
    elif thinks and not replay.is_open_ended:
        out.special(tokens.THINK_CLOSE)
    out.replay(replay.rest, replay.rest_ids)
    return True


def write_reminder(out: SegmentWriter, turn: Message) -> None:
    """A reminder turn."""
    out.special(tokens.REMINDER)
    out.text(turn.content)


def write_header(
    out: SegmentWriter, previous: Message | None, layout: Layout, *, thinking: bool
) -> None:
    """What stands between a turn and the assistant's answer to it; a task has its own."""
    task = previous.task if previous is not None else None
    if task is None:
        out.special(tokens.ASSISTANT)
        out.special(tokens.THINK_OPEN if thinking else tokens.THINK_CLOSE)
    elif task == "action":
        out.special(tokens.ASSISTANT)
        out.special(tokens.THINK_OPEN if layout.thinking else tokens.THINK_CLOSE)
        out.special(tokens.TASKS[task])
    else:
        out.special(_task_token(task, previous))


def _task_token(task: str, turn: Message | None) -> str:
    token = tokens.TASKS.get(task)
    if token is None:
        raise MessageError(
            f"unknown task {task!r}",
            index=turn.index if turn is not None else None,
            field="task",
            remedy=f"use one of {', '.join(tokens.TASKS)}",
        )
    return token
