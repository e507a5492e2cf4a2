"""OpenAI Responses requests.

Items are folded into messages: reasoning, a text and calls that follow each other are one assistant
turn. Reasoning is read from its full text; a summary is not what the model thought.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from baleen.protocol.dialects.fields import (
    Body,
    objects,
    parts_of,
    plain_or_parts,
    renamed,
    string,
)
from baleen.protocol.errors import MessageError, ToolSchemaError, expect_object

_SAME: Final = {
    "model": "model",
    "max_output_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stream": "stream",
    "parallel_tool_calls": "parallel_tool_calls",
}
_FUNCTION: Final = {
    "name": "name",
    "description": "description",
    "parameters": "parameters",
    "strict": "strict",
}
_NAMESPACE_MARK: Final = "__"


def to_chat(body: Mapping[str, Any]) -> Body:
    """A Responses request as a Chat Completions body.

    Raises:
        MessageError: an item or field that cannot be read.
        ToolSchemaError: a tool of a kind that cannot be shown to the model.
    """
    if body.get("previous_response_id"):
        raise MessageError(
            "previous_response_id refers to a conversation that is not stored here",
            field="previous_response_id",
            remedy="send the whole conversation as input",
        )
    folder = _Folder()
    if body.get("instructions"):
        folder.messages.append({"role": "system", "content": body["instructions"]})
    folder.fold(body)
    chat: Body = {"messages": folder.messages, **renamed(body, _SAME)}
    tools = [f for tool in objects(body.get("tools") or [], "tools") for f in _read_tool(tool)]
    if tools:
        chat["tools"] = tools
    if body.get("tool_choice"):
        chat["tool_choice"] = _read_choice(body["tool_choice"])
    effort = expect_object(body.get("reasoning"), "reasoning").get("effort")
    if effort:
        chat["reasoning_effort"] = effort
    text = expect_object(body.get("text"), "text")
    wanted = expect_object(text.get("format"), "text.format")
    if wanted.get("type") == "json_schema":
        schema = {key: wanted[key] for key in ("name", "schema", "strict") if key in wanted}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif wanted:
        chat["response_format"] = dict(wanted)
    return chat


class _Folder:
    """Folds items into messages."""

    def __init__(self) -> None:
        self.messages: list[Body] = []
        self._turn: Body | None = None

    def fold(self, body: Mapping[str, Any]) -> None:
        """Add the input of a request."""
        given = body.get("input")
        if isinstance(given, str):
            self.messages.append({"role": "user", "content": given})
            return
        if given is None and not self.messages:
            raise MessageError("Either input or instructions must be provided", field="input")
        items = objects(given or [], "input")
        if given == []:
            raise MessageError("Input items array must not be empty", field="input")
        for index, item in enumerate(items):
            self._fold_item(index, item)

    def _fold_item(self, index: int, item: Mapping[str, Any]) -> None:
        kind, where = item.get("type", "message"), f"input[{index}]"
        if kind == "reasoning":
            self._add_reasoning(item, where)
        elif kind == "function_call":
            self._add_call(item, where)
        elif kind == "function_call_output":
            self._turn = None
            call_id = string(item, "call_id", where)
            output = _read_content(item.get("output", ""), where)
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
        elif kind == "message":
            self._add_message(item, where)
        else:
            raise MessageError(f"items of type {kind!r} are not supported", field=where)

    def _assistant(self) -> Body:
        """The assistant turn that items go into."""
        if self._turn is None:
            self._turn = {"role": "assistant", "content": ""}
            self.messages.append(self._turn)
        return self._turn

    def _add_reasoning(self, item: Mapping[str, Any], where: str) -> None:
        parts = objects(item.get("content") or [], where)
        text = "\n".join(string(part, "text", where) for part in parts)
        if self._turn is not None and (self._turn["content"] or "tool_calls" in self._turn):
            self._turn = None
        turn = self._assistant()
        before = turn.get("reasoning_content")
        turn["reasoning_content"] = f"{before}\n{text}" if before else text

    def _add_call(self, item: Mapping[str, Any], where: str) -> None:
        function = {key: string(item, key, where) for key in ("name", "arguments")}
        call = {"id": string(item, "call_id", where), "type": "function", "function": function}
        self._assistant().setdefault("tool_calls", []).append(call)

    def _add_message(self, item: Mapping[str, Any], where: str) -> None:
        role, content = item.get("role"), _read_content(item.get("content"), where)
        if role != "assistant":
            self._turn = None
            known = {"user": "user", "developer": "user", "system": "system"}
            if not isinstance(role, str) or role not in known:
                raise MessageError(f"unknown role {role!r}", field=f"{where}.role")
            self.messages.append({"role": known[role], "content": content})
            return
        if self._turn is not None and "tool_calls" in self._turn:
            self._turn = None
        turn = self._assistant()
        parts = [part for part in parts_of(turn["content"]) if part.get("text") != ""]
        turn["content"] = plain_or_parts([*parts, *parts_of(content)])


def _read_content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    return plain_or_parts([_read_part(part, where) for part in objects(content, where)])


def _read_part(part: Mapping[str, Any], where: str) -> Body:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": string(part, "text", where)}
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url", "")}}
    raise MessageError(f"parts of type {kind!r} are not supported", field=where)


def _read_tool(tool: Mapping[str, Any]) -> list[Body]:
    kind = tool.get("type")
    if kind == "function":
        return [{"type": "function", "function": renamed(tool, _FUNCTION)}]
    if kind == "namespace":
        inner = [f for t in objects(tool.get("tools") or [], "tools") for f in _read_tool(t)]
        for entry in inner:
            name = entry["function"].get("name")
            entry["function"]["name"] = f"{tool.get('name')}{_NAMESPACE_MARK}{name}"
        return inner
    if kind in ("web_search", "web_search_preview"):
        return []
    raise ToolSchemaError(f"tools of type {kind!r} are not supported")


def _read_choice(choice: Any) -> Any:
    if isinstance(choice, Mapping):
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


# --- and back ----------------------------------------------------------------------------------


def from_chat(chat: Mapping[str, Any]) -> Body:
    """A Chat Completions body as a Responses request."""
    body: Body = {"input": [], **renamed(chat, {new: old for old, new in _SAME.items()})}
    for message in chat["messages"]:
        body["input"] += _write_message(message)
    if chat.get("tools"):
        tools = [{"type": "function", **tool["function"]} for tool in chat["tools"]]
        body["tools"] = tools
    choice = chat.get("tool_choice")
    if isinstance(choice, Mapping):
        body["tool_choice"] = {"type": "function", "name": choice["function"]["name"]}
    elif choice:
        body["tool_choice"] = choice
    if chat.get("reasoning_effort"):
        body["reasoning"] = {"effort": chat["reasoning_effort"]}
    wanted = chat.get("response_format")
    if wanted:
        body["text"] = {"format": {"type": wanted["type"], **wanted.get("json_schema", {})}}
    return body


def _write_message(message: Mapping[str, Any]) -> list[Body]:
    role, parts = message["role"], parts_of(message.get("content"))
    if role == "tool":
        output = [_write_part(part, "input_text") for part in parts]
        call_id = message["tool_call_id"]
        return [{"type": "function_call_output", "call_id": call_id, "output": output}]
    if role != "assistant":
        content = [_write_part(part, "input_text") for part in parts]
        return [{"type": "message", "role": role, "content": content}]
    items: list[Body] = []
    if message.get("reasoning_content") is not None:
        text = {"type": "reasoning_text", "text": message["reasoning_content"]}
        items.append({"type": "reasoning", "summary": [], "content": [text]})
    said = [_write_part(part, "output_text") for part in parts if part.get("text") != ""]
    if said or not (items or message.get("tool_calls")):
        items.append({"type": "message", "role": "assistant", "content": said})
    for call in message.get("tool_calls") or ():
        items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
    return items


def _write_part(part: Mapping[str, Any], text_kind: str) -> Body:
    if part["type"] == "text":
        return {"type": text_kind, "text": part["text"]}
    return {"type": "input_image", "image_url": part["image_url"]["url"]}
