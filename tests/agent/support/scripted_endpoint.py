"""A Chat Completions endpoint on loopback that says what a test wrote down for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class ScriptedEndpoint:
    """Answers each request with the turn after as many assistant messages as it carries.

    `failures` are answered first, one per request: an HTTP status, or "cut" to break off in the
    middle of the right answer.
    """

    def __init__(
        self,
        turns: Iterable[Mapping[str, Any]],
        *,
        failures: Iterable[int | str] = (),
        models: Iterable[str] = ("scripted",),
        reasoning_fields: tuple[str, ...] = ("reasoning_content",),
    ) -> None:
        self.turns = list(turns)
        self.failures = list(failures)
        self.models = list(models)
        self.reasoning_fields = reasoning_fields
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def chunks(self, turn: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The turn as the deltas of a stream, every text in pieces of three characters."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        for piece in _pieces(turn.get("reasoning", "")):
            deltas.append(dict.fromkeys(self.reasoning_fields, piece))
        deltas += [{"content": piece} for piece in _pieces(turn.get("content", ""))]
        for index, call in enumerate(turn.get("calls", ())):
            function = {"name": call["name"], "arguments": ""}
            deltas.append(
                {"tool_calls": [{"index": index, "id": call["id"], "function": function}]}
            )
            for piece in _pieces(call["arguments"]):
                part = {"index": index, "function": {"arguments": piece}}
                deltas.append({"tool_calls": [part]})
        chunks = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
        reason = turn.get("finish_reason") or ("tool_calls" if turn.get("calls") else "stop")
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        usage = {"prompt_tokens": 100, "completion_tokens": turn.get("tokens", 7)}
        usage["prompt_tokens_details"] = {"cached_tokens": 60}  # type: ignore[assignment]
        chunks.append({"choices": [], "usage": usage})
        return chunks


def _pieces(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(0, len(text), 3)]


def _handler(endpoint: ScriptedEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._json(200, {"object": "list", "data": [{"id": name} for name in endpoint.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            endpoint.requests.append(body)
            endpoint.headers.append({key.lower(): value for key, value in self.headers.items()})
            failure = endpoint.failures.pop(0) if endpoint.failures else None
            if isinstance(failure, int):
                self._json(failure, {"error": {"message": f"scripted {failure}"}})
                return
            said = sum(message["role"] == "assistant" for message in body["messages"])
            if said >= len(endpoint.turns):
                self._json(500, {"error": {"message": f"the script has no turn {said}"}})
                return
            chunks = endpoint.chunks(endpoint.turns[said])
            self._stream(
                chunks[: len(chunks) // 2] if failure == "cut" else chunks, failure is None
            )

        def _json(self, status: int, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            if status in (429, 503):
                self.send_header("retry-after", "0.01")
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, chunks: list[dict[str, Any]], whole: bool) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for chunk in chunks:
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if whole:
                self.wfile.write(b"data: [DONE]\n\n")

    return Handler
