"""Chat Completions messages, read into the internal type.

The API flavor refuses what the API refuses, in the API's words where clients match on them; the
checkpoint flavor takes whatever the checkpoint's encoder takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from baleen.protocol.errors import MessageError
from baleen.protocol.message import Block, Message, Role, ToolCall
from baleen.protocol.revision import Flavor

_ROLES: Final = {role.value: role for role in Role}
_API_ROLES: Final = [role.value for role in Role if role is not Role.DEVELOPER]


def read_messages(messages: Sequence[Any], flavor: Flavor) -> list[Message]:
    """Read Chat Completions messages; messages of the internal type pass through.

    Raises:
        MessageError: a message that cannot be encoded; names index and field.
    """
    if not messages:
        raise MessageError("Empty input messages", remedy="send at least one message")
    return [
        given if isinstance(given, Message) else _read(index, given, flavor)
        for index, given in enumerate(messages)
    ]


def _read(index: int, given: Any, flavor: Flavor) -> Message:
    if not isinstance(given, Mapping):
        raise MessageError(f"a message must be an object, not {type(given).__name__}", index=index)
    role = _ROLES.get(given.get("role", ""))
    if role is None or (role is Role.DEVELOPER and flavor is Flavor.API):
        raise MessageError(
            f"unknown variant `{given.get('role')}`, expected one of "
            + ", ".join(f"`{name}`" for name in (_API_ROLES if flavor is Flavor.API else _ROLES)),
            index=index,
            field="role",
        )
    message = Message(role, index=index)
    if role is Role.ASSISTANT:
        _read_assistant(message, given, flavor)
    elif role is Role.USER and given.get("content_blocks") is not None:
        message.blocks = [_read_block(index, block) for block in given["content_blocks"]]
    else:
        message.content = _text(index, given, flavor)
    if role is Role.TOOL:
        message.call_id = _call_id(index, given, flavor)
    if len(given) > 2:
        _read_extras(message, given, flavor)
    return message


def _read_assistant(message: Message, given: Mapping[str, Any], flavor: Flavor) -> None:
    content = given.get("content")
    if isinstance(content, str):
        message.content = content
    elif content is not None:
        message.content = _text(message.index, given, flavor)
    calls = given.get("tool_calls")
    if calls:
        message.calls = [
            _read_call(message.index, position, call, flavor) for position, call in enumerate(calls)
        ]
    elif flavor is Flavor.API and calls is not None:
        raise MessageError(
            f"Invalid 'messages[{message.index}].tool_calls': empty array. Expected an array with"
            " minimum length 1, but got an empty array instead.",
            index=message.index,
            field="tool_calls",
        )
    elif flavor is Flavor.API and content is None:
        raise MessageError(
            "Invalid assistant message: content or tool_calls must be set",
            index=message.index,
            field="content",
        )
    reasoning = given.get("reasoning_content")
    if reasoning is None:
        reasoning = given.get("reasoning")
    message.reasoning = _string_or_none(message.index, "reasoning_content", reasoning)


def _read_call(index: int, position: int, given: Any, flavor: Flavor) -> ToolCall:
    where = f"tool_calls[{position}]"
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping):
        raise MessageError("missing field `function`", index=index, field=where)
    name, arguments, call_id = function.get("name"), function.get("arguments"), given.get("id")
    if not isinstance(name, str):
        raise MessageError("missing field `name`", index=index, field=f"{where}.function")
    if call_id is None and flavor is Flavor.CHECKPOINT:
        call_id = function.get("id") or ""
    if not isinstance(call_id, str):
        raise MessageError("missing field `id`", index=index, field=where)
    if isinstance(arguments, str):
        return ToolCall(call_id, name, arguments)
    if isinstance(arguments, Mapping):
        return _call_with_object(call_id, name, arguments)
    raise MessageError(
        "missing field `arguments`" if arguments is None else "`arguments` must be a string",
        index=index,
        field=f"{where}.function",
        remedy="send the arguments as JSON text",
    )


def _call_with_object(call_id: str, name: str, arguments: Mapping[str, Any]) -> ToolCall:
    from baleen.protocol.jsontext import dumps

    return ToolCall(call_id, name, dumps(arguments), given_as_object=arguments)


def _read_extras(message: Message, given: Mapping[str, Any], flavor: Flavor) -> None:
    get = given.get
    message.task = _string_or_none(message.index, "task", get("task"))
    message.is_open = bool(get("wo_eos"))
    message.is_prefix = bool(get("prefix"))
    if flavor is Flavor.CHECKPOINT:
        message.tools = get("tools") or None
        message.response_format = get("response_format") or None


def _call_id(index: int, given: Mapping[str, Any], flavor: Flavor) -> str:
    call_id = given.get("tool_call_id")
    if isinstance(call_id, str):
        return call_id
    if call_id is None and flavor is Flavor.CHECKPOINT:
        return ""
    raise MessageError("missing field `tool_call_id`", index=index, field="tool_call_id")


def _string_or_none(index: int, field: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise MessageError(
        f"`{field}` must be a string, not {type(value).__name__}", index=index, field=field
    )


def _text(index: int, given: Mapping[str, Any], flavor: Flavor) -> str:
    content = given.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        if flavor is Flavor.CHECKPOINT:
            return ""
        raise MessageError(
            "content should be a string or a list"
            if "content" in given
            else "missing field `content`",
            index=index,
            field="content",
        )
    if isinstance(content, list):
        return "\n\n".join(_part_text(index, part) for part in content)
    raise MessageError("content should be a string or a list", index=index, field="content")


def _part_text(index: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part["text"], str):
        text: str = part["text"]
        return text
    if kind == "image_url":
        return "[Unsupported Image]"
    raise MessageError(
        f"unknown variant `{kind}`, expected one of `text`, `image_url`, `file`",
        index=index,
        field="content",
    )


def _read_block(index: int, given: Any) -> Block:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return Block(given.get("text", ""))
    if kind == "tool_result":
        content = given.get("content", "")
        if isinstance(content, list):
            content = "\n\n".join(
                part.get("text", "")
                if part.get("type") == "text"
                else f"[Unsupported {part.get('type')}]"
                for part in content
            )
        return Block(content, call_id=given.get("tool_use_id", ""))
    return Block(f"[Unsupported {kind}]")
