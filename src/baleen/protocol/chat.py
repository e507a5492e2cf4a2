"""Chat Completions messages, read into the internal type.

The API flavor refuses what the API refuses, in the API's words where clients match on them; the
checkpoint flavor takes whatever the checkpoint's encoder takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from baleen.protocol.errors import MessageError, expect_list, expect_object
from baleen.protocol.jsontext import dumps
from baleen.protocol.message import Block, Message, Role, ToolCall
from baleen.protocol.revision import Flavor

_ROLES: Final = {role.value: role for role in Role}
_API_ROLES: Final = {name: role for name, role in _ROLES.items() if role is not Role.DEVELOPER}
_IMAGE_PARTS: Final = ("image_url", "image", "file")


def read_messages(
    messages: Sequence[Any],
    flavor: Flavor,
    image_token: str | None = None,
    first_index: int = 0,
) -> list[Message]:
    """Read Chat Completions messages; messages of the internal type pass through.

    ``image_token`` stands for each image; None where a model takes none.

    Raises:
        MessageError: a message that cannot be encoded; names index and field.
    """
    if not messages:
        raise MessageError("Empty input messages", remedy="send at least one message")
    expect_list(messages, "messages")
    reader = _Reader(flavor, image_token)
    return [
        given if isinstance(given, Message) else reader.read(index, given)
        for index, given in enumerate(messages, first_index)
    ]


class _Reader:
    """Reads messages for one flavor."""

    def __init__(self, flavor: Flavor, image_token: str | None) -> None:
        self._is_api = flavor is Flavor.API
        self._image_token = image_token

    def read(self, index: int, given: Any) -> Message:
        """Read one message."""
        if not isinstance(given, Mapping):
            raise MessageError(
                f"a message must be an object, not {type(given).__name__}", index=index
            )
        role = self._role(index, given.get("role"))
        message = Message(role, index=index)
        if role is Role.ASSISTANT:
            self._read_assistant(message, given)
        elif role is Role.USER and given.get("content_blocks") is not None:
            listed = expect_list(given["content_blocks"], "content_blocks", index)
            message.blocks = [self._block(index, block) for block in listed]
        else:
            self._read_content(message, given)
        if role is Role.TOOL:
            message.call_id = self._call_id(index, given)
        if len(given) > 2:
            self._read_extras(message, given)
        return message

    def _role(self, index: int, name: Any) -> Role:
        known = _API_ROLES if self._is_api else _ROLES
        role = known.get(name) if isinstance(name, str) else None
        if role is None:
            names = ", ".join(f"`{known_name}`" for known_name in known)
            raise MessageError(
                f"unknown variant `{name}`, expected one of {names}", index=index, field="role"
            )
        return role

    # --- assistant messages --------------------------------------------------------------------

    def _read_assistant(self, message: Message, given: Mapping[str, Any]) -> None:
        content, calls = given.get("content"), given.get("tool_calls")
        if isinstance(content, str):
            message.content = content
        elif content is not None:
            self._read_content(message, given)
            if message.images:
                raise MessageError(
                    "Image in assistant message is not supported",
                    index=message.index,
                    field="content",
                )
        if calls:
            expect_list(calls, "tool_calls", message.index)
            message.calls = [
                self._call(message.index, place, call) for place, call in enumerate(calls)
            ]
        elif self._is_api:
            self._check_has_something(message.index, content, calls)
        reasoning = given.get("reasoning_content")
        if reasoning is None:
            reasoning = given.get("reasoning")
        message.reasoning = _string_or_none(message.index, "reasoning_content", reasoning)

    @staticmethod
    def _check_has_something(index: int, content: Any, calls: Any) -> None:
        if calls is not None:
            raise MessageError(
                f"Invalid 'messages[{index}].tool_calls': empty array. Expected an array with"
                " minimum length 1, but got an empty array instead.",
                index=index,
                field="tool_calls",
            )
        if content is None:
            raise MessageError(
                "Invalid assistant message: content or tool_calls must be set",
                index=index,
                field="content",
            )

    def _call(self, index: int, place: int, given: Any) -> ToolCall:
        where = f"tool_calls[{place}]"
        function = given.get("function") if isinstance(given, Mapping) else None
        if not isinstance(function, Mapping):
            raise MessageError("missing field `function`", index=index, field=where)
        name, arguments, call_id = function.get("name"), function.get("arguments"), given.get("id")
        if not isinstance(name, str):
            raise MessageError("missing field `name`", index=index, field=f"{where}.function")
        if call_id is None and not self._is_api:
            call_id = function.get("id") or ""
        if not isinstance(call_id, str):
            raise MessageError("missing field `id`", index=index, field=where)
        if isinstance(arguments, str):
            return ToolCall(call_id, name, arguments)
        if isinstance(arguments, Mapping):
            return ToolCall(call_id, name, dumps(arguments), given_as_object=arguments)
        raise MessageError(
            "missing field `arguments`" if arguments is None else "`arguments` must be a string",
            index=index,
            field=f"{where}.function",
            remedy="send the arguments as JSON text",
        )

    # --- other fields --------------------------------------------------------------------------

    def _read_extras(self, message: Message, given: Mapping[str, Any]) -> None:
        get = given.get
        message.task = _string_or_none(message.index, "task", get("task"))
        message.is_open = bool(get("wo_eos"))
        message.is_prefix = message.role is Role.ASSISTANT and bool(get("prefix"))
        if not self._is_api:
            message.tools = get("tools") or None
            message.response_format = get("response_format") or None

    def _call_id(self, index: int, given: Mapping[str, Any]) -> str:
        call_id = given.get("tool_call_id")
        if isinstance(call_id, str):
            return call_id
        if call_id is None and not self._is_api:
            return ""
        raise MessageError("missing field `tool_call_id`", index=index, field="tool_call_id")

    # --- content -------------------------------------------------------------------------------

    def _read_content(self, message: Message, given: Mapping[str, Any]) -> None:
        """Text as it is; parts joined by blank lines."""
        content = given.get("content")
        if isinstance(content, str):
            message.content = content
        elif isinstance(content, list) and message.role is not Role.REMINDER:
            message.content, message.images = self._joined(message.index, content)
        elif content is not None or self._is_api:
            raise MessageError(
                "content should be a string or a list"
                if "content" in given
                else "missing field `content`",
                index=message.index,
                field="content",
            )

    def _joined(self, index: int, parts: Sequence[Any]) -> tuple[str, Sequence[int]]:
        texts: list[str] = []
        images: list[int] = []
        position = 0
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind in _IMAGE_PARTS and self._image_token is not None:
                images.append(position)
                texts.append(self._image_token)
            else:
                texts.append(self._part_text(index, kind, part))
            position += len(texts[-1]) + 2
        return "\n\n".join(texts), tuple(images)

    def _part_text(self, index: int, kind: Any, part: Any) -> str:
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if self._is_api and kind in _IMAGE_PARTS:
            return "[Unsupported Image]"
        if not self._is_api and isinstance(kind, str):
            return f"[Unsupported {kind}]"
        raise MessageError(
            f"unknown variant `{kind}`, expected one of `text`, `image_url`, `file`",
            index=index,
            field="content",
        )

    def _block(self, index: int, given: Any) -> Block:
        """A piece of a user turn that is already in the encoder's own form."""
        kind = given.get("type") if isinstance(given, Mapping) else None
        if kind != "tool_result":
            text, images = self._joined(index, [given])
            return Block(text, None, images)
        content = given.get("content", "")
        if isinstance(content, list):
            content, images = self._joined(index, content)
            return Block(content, given.get("tool_use_id", ""), images)
        return Block(content, given.get("tool_use_id", ""))


def _string_or_none(index: int, field: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise MessageError(
        f"`{field}` must be a string, not {type(value).__name__}", index=index, field=field
    )


def write_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages of the internal type as Chat Completions messages."""
    return [_write(message) for message in messages]


def _write(message: Message) -> dict[str, Any]:
    written: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.blocks is not None:
        written["content"] = "\n\n".join(block.text for block in message.blocks)
    if message.reasoning is not None:
        written["reasoning_content"] = message.reasoning
    if message.calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.calls
        ]
    if message.call_id is not None:
        written["tool_call_id"] = message.call_id
    if message.task is not None:
        written["task"] = message.task
    if message.is_prefix:
        written["prefix"] = True
    return written


def encode_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a Chat Completions body says to :meth:`Encoder.encode`, as keyword arguments.

    Thinking is on unless the body switches it off, in one of the ways that clients know.
    """
    template = expect_object(body.get("chat_template_kwargs"), "chat_template_kwargs")
    asked = expect_object(body.get("thinking"), "thinking").get("type")
    thinking = template.get("thinking", True) if asked is None else asked != "disabled"
    effort = body.get("reasoning_effort")
    if effort == "none" and asked is not None:
        effort = None
    return {
        "messages": body.get("messages") or [],
        "tools": body.get("tools"),
        "tool_choice": body.get("tool_choice"),
        "thinking": bool(thinking),
        "effort": effort,
        "response_format": body.get("response_format"),
    }
