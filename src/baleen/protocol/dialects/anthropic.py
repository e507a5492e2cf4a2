"""Anthropic Messages requests.

Thinking blocks become reasoning, their signatures are dropped: there is nothing to verify them
against. Results come before the text of the user message that holds them, as the dialect demands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from baleen.protocol.dialects.fields import (
    Body,
    objects,
    parts_of,
    plain_or_parts,
    renamed,
    string,
    text_parts,
)
from baleen.protocol.errors import MessageError, ToolSchemaError, expect_object
from baleen.protocol.jsontext import dumps

_SAME: Final = {
    "model": "model",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stream": "stream",
    "stop_sequences": "stop",
}
_SAID: Final = ("text", "thinking", "tool_use")
"""Blocks of an assistant's message; whatever else was in it would be lost in silence."""
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def to_chat(body: Mapping[str, Any]) -> Body:
    """A Messages request as a Chat Completions body.

    Raises:
        MessageError: a message or field that cannot be read.
        ToolSchemaError: a tool that runs on a server elsewhere.
    """
    messages: list[Body] = []
    if body.get("system"):
        messages.append({"role": "system", "content": _system(body["system"])})
    given = objects(body.get("messages", []), "messages")
    if not given:
        raise MessageError("messages: at least one message is required")
    for index, message in enumerate(given):
        messages += _read_message(index, message)
    chat: Body = {"messages": messages, **renamed(body, _SAME)}
    if body.get("tools"):
        listed = objects(body["tools"], "tools")
        chat["tools"] = [_read_tool(place, tool) for place, tool in enumerate(listed)]
    if body.get("tool_choice"):
        chat["tool_choice"] = _read_choice(body["tool_choice"])
        if body["tool_choice"].get("disable_parallel_tool_use"):
            chat["parallel_tool_calls"] = False
    thinking = expect_object(body.get("thinking"), "thinking")
    if thinking.get("type"):
        enabled = thinking["type"] != "disabled"
        chat["thinking"] = {"type": "enabled" if enabled else "disabled"}
    output = expect_object(body.get("output_config"), "output_config")
    if output.get("effort"):
        chat["reasoning_effort"] = output["effort"]
    wanted = expect_object(output.get("format"), "output_config.format")
    if wanted:
        wrapped = {"name": "output", "schema": wanted.get("schema", {})}
        chat["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    return chat


def _system(system: Any) -> Any:
    if isinstance(system, str):
        return system
    return plain_or_parts([_read_part(0, part) for part in objects(system, "system")])


def _read_message(index: int, message: Mapping[str, Any]) -> list[Body]:
    role, content = message.get("role"), message.get("content")
    if role == "system":
        text = content if isinstance(content, str) else _joined(index, content)
        wrapped = f"<system-reminder>\n{text}\n</system-reminder>"
        return [{"role": "user", "content": wrapped}]
    if role not in ("user", "assistant"):
        raise MessageError(f"unknown role {role!r}", index=index, field="role")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = objects(content, f"messages[{index}].content")
    if not blocks:
        raise MessageError(f"messages.{index}: all messages must have non-empty content")
    return _read_user(index, blocks) if role == "user" else [_read_assistant(index, blocks)]


def _joined(index: int, content: Any) -> str:
    blocks = objects(content, f"messages[{index}].content")
    return "\n\n".join(string(block, "text", f"messages[{index}].content") for block in blocks)


def _read_user(index: int, blocks: list[Mapping[str, Any]]) -> list[Body]:
    results = [_read_result(index, b) for b in blocks if b.get("type") == "tool_result"]
    parts = [_read_part(index, b) for b in blocks if b.get("type") != "tool_result"]
    if not parts:
        return results
    return [*results, {"role": "user", "content": plain_or_parts(parts)}]


def _read_result(index: int, block: Mapping[str, Any]) -> Body:
    content = block.get("content", "")
    if not isinstance(content, str):
        content = [_read_part(index, part) for part in objects(content, f"messages[{index}]")]
    call_id = string(block, "tool_use_id", f"messages[{index}].content")
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _read_part(index: int, block: Mapping[str, Any]) -> Body:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": string(block, "text", f"messages[{index}].content")}
    if kind == "image":
        source = expect_object(block.get("source"), "content", index)
        return {"type": "image_url", "image_url": {"url": _image_url(source)}}
    if kind == "document":
        source = expect_object(block.get("source"), "content", index)
        media = source.get("media_type", "unknown")
        return {"type": "text", "text": f"[Unsupported document type: {media}]"}
    raise MessageError(f"unknown variant `{kind}`", index=index, field="content")


def _image_url(source: Mapping[str, Any]) -> str:
    if source.get("type") == "base64":
        return f"data:{source.get('media_type', '')};base64,{source.get('data', '')}"
    return str(source.get("url", ""))


def _read_assistant(index: int, blocks: list[Mapping[str, Any]]) -> Body:
    where = f"messages[{index}].content"
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            raise MessageError(
                f"messages.{index}: `tool_result` blocks can only be in `user` messages",
                index=index,
                field="content",
            )
        if kind not in _SAID:
            raise MessageError(
                f"unknown variant `{kind}`, expected one of `text`, `thinking`, `tool_use`",
                index=index,
                field="content",
            )
    thoughts = [string(b, "thinking", where) for b in blocks if b.get("type") == "thinking"]
    texts = [string(b, "text", where) for b in blocks if b.get("type") == "text"]
    message: Body = {"role": "assistant", "content": plain_or_parts(text_parts(texts)) or ""}
    if thoughts:
        message["reasoning_content"] = "\n\n".join(thoughts)
    calls = [
        _call(string(b, "id", where), string(b, "name", where), dumps(b.get("input", {})))
        for b in blocks
        if b.get("type") == "tool_use"
    ]
    if calls:
        message["tool_calls"] = calls
    return message


def _call(call_id: str, name: str, arguments: str) -> Body:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _read_tool(place: int, tool: Mapping[str, Any]) -> Body:
    if tool.get("type") not in (None, "custom"):
        raise ToolSchemaError(f"tools[{place}]: server tools are not supported")
    function = renamed(tool, {"name": "name", "description": "description", "strict": "strict"})
    function["parameters"] = tool.get("input_schema")
    return {"type": "function", "function": function}


def _read_choice(given: Any) -> Any:
    choice = expect_object(given, "tool_choice")
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise MessageError(f"unknown tool_choice {kind!r}", field="tool_choice")
    return _CHOICES[kind]


# --- and back ----------------------------------------------------------------------------------


def from_chat(chat: Mapping[str, Any]) -> Body:
    """A Chat Completions body as a Messages request."""
    body: Body = {"messages": [], **renamed(chat, {new: old for old, new in _SAME.items()})}
    system: list[Body] = []
    for message in chat["messages"]:
        if message["role"] == "system":
            system += parts_of(message["content"])
        else:
            _append(body["messages"], *_write_message(message))
    if system:
        body["system"] = plain_or_parts(system)
    if chat.get("tools"):
        body["tools"] = [_write_tool(tool["function"]) for tool in chat["tools"]]
    if chat.get("tool_choice"):
        body["tool_choice"] = _write_choice(chat["tool_choice"])
    if chat.get("parallel_tool_calls") is False and chat.get("tools"):
        choice = body.setdefault("tool_choice", {"type": "auto"})
        choice["disable_parallel_tool_use"] = True
    if chat.get("thinking"):
        body["thinking"] = dict(chat["thinking"])
    output: Body = renamed(chat, {"reasoning_effort": "effort"})
    wanted = chat.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        output["format"] = {"type": "json_schema", "schema": wanted["json_schema"]["schema"]}
    if output:
        body["output_config"] = output
    return body


def _append(messages: list[Body], role: str, blocks: list[Body]) -> None:
    """Roles alternate in this dialect: results and the text behind them share a message."""
    if messages and messages[-1]["role"] == role == "user":
        messages[-1]["content"] += blocks
    else:
        messages.append({"role": role, "content": blocks})


def _write_message(message: Mapping[str, Any]) -> tuple[str, list[Body]]:
    parts = [_write_part(part) for part in parts_of(message.get("content"))]
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": parts}
        return "user", [result]
    if message["role"] != "assistant":
        return "user", parts
    blocks: list[Body] = []
    if message.get("reasoning_content"):
        thought = message["reasoning_content"]
        blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
    blocks += [part for part in parts if part.get("text") != ""]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        given = {"id": call["id"], "name": function["name"], "input": _input(function)}
        blocks.append({"type": "tool_use", **given})
    return "assistant", blocks


def _input(function: Mapping[str, Any]) -> Any:
    """This dialect has no place for arguments that are not an object."""
    try:
        value = json.loads(function["arguments"])
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"arguments": function["arguments"]}


def _write_part(part: Mapping[str, Any]) -> Body:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    url = part["image_url"]["url"]
    head, _, data = url.partition(";base64,")
    if data:
        media = head.removeprefix("data:")
        return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}
    return {"type": "image", "source": {"type": "url", "url": url}}


def _write_tool(function: Mapping[str, Any]) -> Body:
    tool = renamed(function, {"name": "name", "description": "description", "strict": "strict"})
    tool["input_schema"] = function.get("parameters") or {"type": "object"}
    return tool


def _write_choice(choice: Any) -> Body:
    if isinstance(choice, Mapping):
        return {"type": "tool", "name": choice["function"]["name"]}
    names = {new: old for old, new in _CHOICES.items()}
    return {"type": names[choice]}
