"""One answer as Responses items and events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from baleen.protocol.events import (
    ArgumentsDelta,
    CallStart,
    ContentDelta,
    Event,
    ReasoningDelta,
)
from baleen.server.answers.answer import Answer
from baleen.server.doors.report import report_of
from baleen.server.wire.sse import quote

Keep = Callable[[list[Any]], None]


class ResponsesWriter:
    """Writes items one after the other; `keep` is given the output when it is whole."""

    def __init__(self, answer: Answer, model: str, asked: Mapping[str, Any], keep: Keep) -> None:
        self._answer, self._model, self._asked, self._keep = answer, model, asked, keep
        self._created = int(time.time())
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None
        self._text: list[str] = []

    # --- streaming -----------------------------------------------------------------------------

    def begin(self) -> str:
        """The response, empty."""
        head = {"response": self._response("in_progress")}
        return self._event("response.created", head) + self._event("response.in_progress", head)

    def feed(self, events: list[Event]) -> str:
        """Item events."""
        parts: list[str] = []
        for event in events:
            if isinstance(event, ReasoningDelta):
                parts.append(self._enter("reasoning"))
                parts.append(self._delta("response.reasoning_text.delta", event.text))
            elif isinstance(event, ContentDelta):
                parts.append(self._enter("message"))
                parts.append(
                    self._delta("response.output_text.delta", event.text, ',"logprobs":[]')
                )
            elif isinstance(event, CallStart):
                parts.append(self._leave(calls_follow=True))
                parts.append(self._enter_call(event))
            elif isinstance(event, ArgumentsDelta):
                parts.append(self._delta("response.function_call_arguments.delta", event.text))
        return "".join(parts)

    def _enter(self, kind: str) -> str:
        """Begin an item of text, unless one of its kind has begun."""
        if self._item is not None and self._item["type"] == kind:
            return ""
        left = self._leave()
        place = len(self._output)
        if kind == "reasoning":
            item = {
                "type": "reasoning",
                "id": f"rs_{self._answer.id}_{place}",
                "status": "in_progress",
                "content": [],
                "summary": [],
                "encrypted_content": f"{self._answer.id}-{place}",
            }
        else:
            item = {
                "type": "message",
                "id": f"msg_{self._answer.id}_{place}",
                "status": "in_progress",
                "role": "assistant",
                "phase": "final_answer",
                "content": [],
            }
        self._item = item
        added = self._event("response.output_item.added", {"item": item, "output_index": place})
        return left + added + self._part_event("added", "")

    def _enter_call(self, event: CallStart) -> str:
        place = len(self._output)
        self._item = {
            "type": "function_call",
            "id": f"fc_{self._answer.id}_{place}",
            "status": "in_progress",
            "call_id": event.id,
            "name": event.name,
            "arguments": "",
        }
        fields = {"item": self._item, "output_index": place}
        return self._event("response.output_item.added", fields)

    def _delta(self, name: str, text: str, extra: str = "") -> str:
        assert self._item is not None, "text belongs to an item"
        self._text.append(text)
        is_text = self._item["type"] != "function_call"
        where = '"content_index":0,' if is_text else ""
        number, self._number = self._number, self._number + 1
        return (
            f'event: {name}\ndata: {{"type":"{name}",{where}"delta":{quote(text)},'
            f'"item_id":"{self._item["id"]}"{extra},"output_index":{len(self._output)},'
            f'"sequence_number":{number}}}\n\n'
        )

    def _leave(self, *, calls_follow: bool = False, is_cut: bool = False) -> str:
        """End the open item."""
        item, self._item = self._item, None
        if item is None:
            return ""
        text = "".join(self._text)
        self._text = []
        place = len(self._output)
        where = {"item_id": item["id"], "output_index": place}
        status = "incomplete" if is_cut else "completed"
        if item["type"] == "function_call":
            item = {**item, "status": status, "arguments": text}
            done = self._event(
                "response.function_call_arguments.done", {"arguments": text, **where}
            )
        else:
            kind = "reasoning" if item["type"] == "reasoning" else "output"
            extra: dict[str, Any] = {"logprobs": []} if kind == "output" else {}
            fields = {"content_index": 0, **where, **extra, "text": text}
            done = self._event(f"response.{kind}_text.done", fields)
            done += self._part_event("done", text, item)
            item = {**item, "status": status, "content": [_part(item["type"], text)]}
            if calls_follow and item["type"] == "message":
                item["phase"] = "commentary"
        self._output.append(item)
        return done + self._event(
            "response.output_item.done", {"item": item, "output_index": place}
        )

    def _part_event(self, verb: str, text: str, item: Mapping[str, Any] | None = None) -> str:
        item = item or self._item
        assert item is not None, "a part belongs to an item"
        fields = {
            "content_index": 0,
            "item_id": item["id"],
            "output_index": len(self._output),
            "part": _part(item["type"], text),
        }
        return self._event(f"response.content_part.{verb}", fields)

    def finish(self) -> str:
        """The whole response."""
        answer = self._answer
        is_cut = answer.finish_reason == "length"
        left = self._leave(is_cut=is_cut)
        self._keep(self._output)
        name = "response.incomplete" if is_cut else "response.completed"
        return left + self._event(name, {"response": self._final()})

    def failed(self, status: int, error: dict[str, Any]) -> str:
        """The response, failed."""
        response = self._response("failed")
        response["error"] = {"code": error["code"], "message": error["message"]}
        return self._event("response.failed", {"response": response})

    def _event(self, name: str, fields: Mapping[str, Any]) -> str:
        number, self._number = self._number, self._number + 1
        data = json.dumps({"type": name, **fields, "sequence_number": number}, ensure_ascii=False)
        return f"event: {name}\ndata: {data}\n\n"

    # --- whole ---------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The response object."""
        self._leave(is_cut=self._answer.finish_reason == "length")
        self._keep(self._output)
        return self._final()

    def _final(self) -> dict[str, Any]:
        answer = self._answer
        is_cut = answer.finish_reason == "length"
        response = self._response("incomplete" if is_cut else "completed")
        response["completed_at"] = int(time.time())
        response["incomplete_details"] = {"reason": "max_output_tokens"} if is_cut else None
        response["output"] = self._output
        response["usage"] = self._usage()
        response["baleen"] = report_of(answer)
        return response

    def _usage(self) -> dict[str, Any]:
        answer = self._answer
        num_prompt, num_sampled = len(answer.prepared.ids), len(answer.sampled)
        return {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": answer.num_cached_tokens},
            "output_tokens": num_sampled,
            "output_tokens_details": {"reasoning_tokens": answer.num_reasoning_tokens},
            "total_tokens": num_prompt + num_sampled,
        }

    def _response(self, status: str) -> dict[str, Any]:
        """The response object with the settings of its request."""
        asked = self._asked
        reasoning = asked.get("reasoning") or {}
        text = asked.get("text") or {}
        return {
            "id": self._answer.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "completed_at": None,
            "content_filters": None,
            "error": None,
            "frequency_penalty": 0.0,
            "incomplete_details": None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "max_tool_calls": None,
            "model": self._model,
            "moderation": None,
            "output": [],
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "presence_penalty": 0.0,
            "previous_response_id": asked.get("previous_response_id"),
            "prompt_cache_key": asked.get("prompt_cache_key"),
            "prompt_cache_retention": None,
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "safety_identifier": None,
            "service_tier": "default",
            "store": asked.get("store", False),
            "temperature": asked.get("temperature", 1.0),
            "text": {"format": text.get("format") or {"type": "text"}, "verbosity": None},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": [_tool(tool) for tool in asked.get("tools") or []],
            "top_logprobs": 0,
            "top_p": asked.get("top_p", 1.0),
            "truncation": "disabled",
            "usage": None,
            "user": asked.get("user"),
            "metadata": asked.get("metadata") or {},
        }


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _tool(tool: Any) -> Any:
    if isinstance(tool, dict) and tool.get("type") == "function":
        return {**tool, "strict": tool.get("strict")}
    return tool
