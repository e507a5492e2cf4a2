"""The edge's door for other machines: HTTP over TCP, every request with the token.

``GET /v1/frames`` with ``Upgrade: baleen-frames`` turns the connection into the same frames that
local clients speak: that is what the SDK does with ``BALEEN_SANDBOX_URL``. ``POST /v1/<request>``
takes and gives JSON, for everybody else; bytes are ``{"base64": ...}``. ``GET /openapi.json``
describes it. Who has the token may use the edge's boxes and images, but cannot name paths of the
edge's host.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import ssl
import uuid
from collections.abc import Mapping
from typing import Any

from baleen.errors import SandboxError, UsageError

from .errors import to_wire
from .frames import Message
from .job import make_job
from .openapi import REQUESTS, document
from .remote import UPGRADE
from .server import Client, Server
from .spec import MAX_OUTPUT_BYTES, BoxSpec

MAX_HEAD_BYTES = 16 << 10
MAX_BODY_BYTES = 48 << 20


async def open_door(
    server: Server, host: str, port: int, token: str, tls: ssl.SSLContext | None = None
) -> asyncio.Server:
    """Listens for other machines."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Visitor(server, token), host, port, ssl=tls)


class _Visitor(asyncio.Protocol):
    """One connection until it has become a client's or is answered."""

    def __init__(self, server: Server, token: str) -> None:
        self._server = server
        self._token = token
        self._data = b""
        self._is_answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._is_answering:
            self._read()

    def _read(self) -> None:
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            if len(head) > MAX_HEAD_BYTES:
                self._answer(431, {"error": "the head is too long"})
            return None
        try:
            first, *lines = head.decode("latin-1").split("\r\n")
            method, path, _ = first.split(" ")
            pairs = [line.split(":", 1) for line in lines]
            headers = {name.strip().lower(): value.strip() for name, value in pairs}
            size = int(headers.get("content-length", "0"))
        except ValueError:
            return self._answer(400, {"error": "not HTTP"})
        if size > MAX_BODY_BYTES:
            return self._answer(413, {"error": f"over {MAX_BODY_BYTES} bytes"})
        if len(rest) < size:
            return None
        self._is_answering = True
        return self._route(method, path, headers, rest)

    def _route(self, method: str, path: str, headers: Mapping[str, str], rest: bytes) -> None:
        if (method, path) == ("GET", "/health"):
            return self._answer(200, {"status": "ok"})
        if (method, path) == ("GET", "/openapi.json"):
            return self._answer(200, document())
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return self._answer(401, {"error": "the token is wrong or missing"})
        if (method, path) == ("GET", "/v1/frames") and headers.get("upgrade") == UPGRADE:
            return self._become_client(rest)
        request = path.removeprefix("/v1/")
        if method == "POST" and request in REQUESTS:
            task = asyncio.create_task(self._serve(request, rest))
            self._server.keep(task)
            return None
        return self._answer(404, {"error": f"no {method} {path}; see /openapi.json"})

    def _become_client(self, rest: bytes) -> None:
        link = self._server.new_client(is_remote=True)
        lines = ("101 Switching Protocols", f"Upgrade: {UPGRADE}", "Connection: Upgrade")
        self._transport.write(("HTTP/1.1 " + "\r\n".join(lines) + "\r\n\r\n").encode())
        self._transport.set_protocol(link)
        link.connection_made(self._transport)
        if rest:
            link.data_received(rest)

    async def _serve(self, request: str, body: bytes) -> None:
        client = Client(self._server, is_remote=True)
        try:
            message = _message(request, body)
            if request == "run":
                message["job"] = self._job(message["box"], message["job"])
        except SandboxError as error:
            return self._answer(409, {"error": to_wire(error)})
        except (ValueError, TypeError, KeyError, UsageError) as error:
            return self._answer(400, {"error": to_wire(UsageError(f"cannot read it: {error}"))})
        answer = await client.serve(message)
        client.forget()
        if "error" in answer:
            is_usage = answer["error"]["code"].startswith("usage")
            return self._answer(400 if is_usage else 409, {"error": answer["error"]})
        return self._answer(200, {"ok": answer["ok"]})

    def _job(self, box_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The command that a request means, as the box's image completes it."""
        config = self._server.registry.find(box_id).image.config
        fields = {"timeout_ms": 30_000, "max_output": MAX_OUTPUT_BYTES, **given}
        timeout_ms = fields.pop("timeout_ms")
        return make_job(
            fields.pop("argv"),
            timeout_s=None if timeout_ms is None else timeout_ms / 1000,
            cwd=fields.pop("cwd", None) or config.workdir,
            env={**config.env, **(fields.pop("env", None) or {})},
            user=fields.pop("user", None) or config.user,
            max_output_bytes=fields.pop("max_output"),
            **{"stdin": None, **fields},
        )

    def _answer(self, status: int, data: Any) -> None:
        body = json.dumps(data, default=_plain).encode()
        head = (
            f"HTTP/1.1 {status} {'OK' if status == 200 else 'Refused'}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        self._transport.close()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"{value!r} is no JSON")


def _message(request: str, body: bytes) -> Message:
    """The message that a JSON request stands for, with what it leaves out."""

    def bytes_of(item: dict[str, Any]) -> Any:
        return base64.b64decode(item["base64"]) if set(item) == {"base64"} else item

    data = json.loads(body or b"{}", object_hook=bytes_of)
    message: Message = {"id": 0, **data, "do": request}
    if request == "create":
        given = {"mounts": [], "python": [], **data.get("spec", {})}
        message["spec"] = BoxSpec.from_wire({"network": "none", **given}).to_wire()
        message.setdefault("request", f"r{uuid.uuid4().hex}")
    elif request == "run":
        message["job"] = dict(data["job"])
        message.setdefault("key", f"auto:{uuid.uuid4().hex}")
    elif request == "fork":
        message["requests"] = [f"r{uuid.uuid4().hex}" for _ in range(int(data.pop("n", 1)))]
    elif request == "file":
        message.setdefault("arguments", {})
    elif request in ("snapshot", "reap"):
        message.setdefault("name" if request == "snapshot" else "job", None)
    return message
