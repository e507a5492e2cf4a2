"""What the API refuses beyond malformed fields, in the API's words: clients match on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from baleen.protocol.errors import MessageError, ToolSchemaError
from baleen.protocol.message import Message, Role
from baleen.protocol.tools import Tool

_UNANSWERED = (
    "An assistant message with 'tool_calls' must be followed by tool messages responding to each"
    " 'tool_call_id'"
)


def check_request(messages: Sequence[Message], shown: Sequence[Tool], response_format: Any) -> None:
    """Check what concerns more than one field of a request; ``shown`` are the tools in the prompt.

    Raises:
        MessageError: messages that do not follow each other, or fields that exclude each other.
        ToolSchemaError: tools that exclude each other.
    """
    if len({tool.name for tool in shown}) < len(shown):
        raise ToolSchemaError("Tool names must be unique.")
    if any(tool.strict for tool in shown):
        if response_format is not None:
            raise MessageError(
                "response_format should not be used with tools", field="response_format"
            )
        if not all(tool.strict for tool in shown):
            raise ToolSchemaError("Cannot use strict tool with non-strict tool in the same request")
    _check_dialogue(messages)
    if _wants_object(response_format) and not any("json" in m.content.lower() for m in messages):
        raise MessageError(
            "Prompt must contain the word 'json' in some form to use 'response_format' of type"
            " 'json_object'.",
            field="response_format",
        )


def check_prefix(
    messages: Sequence[Message], declared: Sequence[Tool], response_format: Any
) -> None:
    """The API's own continuation goes with neither tools, nor calls, nor JSON objects.

    Raises:
        MessageError: one of them is there.
    """
    index = messages[-1].index
    if _wants_object(response_format):
        raise MessageError(
            "response_format json_object should not be used with prefix",
            index=index,
            field="prefix",
        )
    if declared or any(message.calls for message in messages):
        raise MessageError(
            "Function call should not be used with prefix", index=index, field="prefix"
        )


def _wants_object(response_format: Any) -> bool:
    return isinstance(response_format, Mapping) and response_format.get("type") == "json_object"


def _check_dialogue(messages: Sequence[Message]) -> None:
    """Every call is answered, at once and once; every result answers a call.

    Raises:
        MessageError: they are not.
    """
    position = 0
    while position < len(messages):
        message = messages[position]
        if message.role is Role.TOOL:
            raise MessageError(
                "Messages with role 'tool' must be a response to a preceding message with"
                " 'tool_calls'",
                index=message.index,
                field="role",
            )
        position += 1
        if message.calls:
            _check_results(message, messages[position : position + len(message.calls)])
            position += len(message.calls)


def _check_results(asking: Message, results: Sequence[Message]) -> None:
    """The messages behind an assistant turn are the results of its calls, in any order."""
    if len(results) == len(asking.calls) == 1 and results[0].call_id == asking.calls[0].id:
        return
    expected = [call.id for call in asking.calls]
    _check_unique(expected, [asking.index] * len(expected))
    if len(results) < len(expected) or any(m.role is not Role.TOOL for m in results):
        raise MessageError(
            f"{_UNANSWERED}. (insufficient tool messages following tool_calls message)",
            index=asking.index,
            field="tool_calls",
        )
    given = [message.call_id or "" for message in results]
    _check_unique(given, [message.index for message in results])
    unknown = [call_id for call_id in given if call_id not in expected]
    if unknown:
        raise MessageError(
            f"{_UNANSWERED}, The following tool_call_ids did not have response messages:"
            f" {', '.join(unknown)}",
            index=asking.index,
            field="tool_calls",
        )


def _check_unique(ids: Sequence[str], indices: Sequence[int]) -> None:
    seen: set[str] = set()
    for call_id, index in zip(ids, indices, strict=True):
        if call_id in seen:
            raise MessageError(
                f"Duplicate value for 'tool_call_id' of {call_id} in message[{index}]",
                index=index,
                field="tool_call_id",
            )
        seen.add(call_id)
