"""``baleen mcp``: a box as an MCP server over standard input and output.

The protocol is JSON-RPC, one message a line. Spoken are ``initialize``, ``ping``, ``tools/list``
and ``tools/call``; calls run side by side. The box is made with the first call and ends with the
server. What a command prints is a result; a failure of the infrastructure is a JSON-RPC error, so
that no client takes it for a command's output.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from baleen import __version__
from baleen.errors import SandboxError, UsageError

from ..errors import BoxFileError
from ..sandbox import Sandbox
from .options import BoxOptions

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Of the protocol, newest first; what is used of it here is the same in all of them."""

MAX_LINE_BYTES = 64 << 20
MAX_TEXT_BYTES = 200_000
"""Of a command's stream or a file: models read no more, and clients choke."""

DEFAULT_TIMEOUT_S = 120.0
_PARSE_ERROR, _INVALID, _UNKNOWN, _BAD_PARAMS, _INTERNAL = -32700, -32600, -32601, -32602, -32603

Json = dict[str, Any]


def _tool(name: str, text: str, required: list[str], **properties: Json) -> Json:
    schema = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": text, "inputSchema": schema}


_TEXT = {"type": "string"}
_PATH = {"type": "string", "description": "Absolute path in the sandbox."}
TOOLS = [
    _tool(
        "bash",
        "Run a bash command in the sandbox. Files and background processes live on between calls, "
        "the shell's own variables and folder do not.",
        ["command"],
        command=_TEXT,
        timeout_s={"type": "number", "description": "Seconds until it is killed. Default 120."},
        cwd={"type": "string", "description": "Folder to run in."},
    ),
    _tool(
        "read_file",
        "Read a text file of the sandbox, whole or some lines of it.",
        ["path"],
        path=_PATH,
        offset={"type": "integer", "minimum": 1, "description": "First line, counted from 1."},
        limit={"type": "integer", "minimum": 1, "description": "How many lines."},
    ),
    _tool(
        "write_file",
        "Write a file of the sandbox; parents are made, an old file is replaced.",
        ["path", "content"],
        path=_PATH,
        content=_TEXT,
    ),
    _tool(
        "edit",
        "Replace a piece of a file of the sandbox. The piece must occur exactly once, unless "
        "replace_all is true.",
        ["path", "old", "new"],
        path=_PATH,
        old=_TEXT,
        new=_TEXT,
        replace_all={"type": "boolean"},
    ),
]


class ToolError(Exception):
    """The model's mistake: told to it as the tool's result."""


class RpcError(Exception):
    """The client's mistake, or a failure that is nobody's command."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class McpServer:
    """One client on one pair of streams, one box."""

    def __init__(self, options: BoxOptions, send: Callable[[Json], Awaitable[None]]) -> None:
        self._options = options
        self._send = send
        self._box: Sandbox | None = None
        self._making = asyncio.Lock()
        self._calls: dict[str | int, asyncio.Task[None]] = {}
        self._tools: dict[str, Callable[[Json], Awaitable[str]]] = {
            "bash": self._bash,
            "read_file": self._read_file,
            "write_file": self._write_file,
            "edit": self._edit,
        }

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Serves until the client closes its end; then the box ends."""
        try:
            while line := await reader.readline():
                if line.strip():
                    await self._receive(line)
        finally:
            for task in self._calls.values():
                task.cancel()
            await asyncio.gather(*self._calls.values(), return_exceptions=True)
            if self._box is not None:
                await self._box.close()

    async def _receive(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            await self._fail(None, RpcError(_PARSE_ERROR, "not JSON"))
            return
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            if not (isinstance(message, dict) and ("result" in message or "error" in message)):
                await self._fail(None, RpcError(_INVALID, "not a request"))
            return
        if "id" not in message:
            self._notified(message)
            return
        number = message["id"]
        task = asyncio.create_task(self._answer(number, message))
        self._calls[number] = task
        task.add_done_callback(lambda _: self._calls.pop(number, None))

    def _notified(self, message: Json) -> None:
        if message["method"] == "notifications/cancelled":
            task = self._calls.get((message.get("params") or {}).get("requestId", ""))
            if task is not None:
                task.cancel()

    async def _answer(self, number: str | int, message: Json) -> None:
        try:
            result = await self._handle(message["method"], message.get("params") or {})
        except RpcError as error:
            await self._fail(number, error)
        except (SandboxError, UsageError) as error:
            data = {"code": error.code, "remedy": error.remedy}
            await self._fail(number, RpcError(_INTERNAL, error.message, data))
        else:
            await self._send({"jsonrpc": "2.0", "id": number, "result": result})

    async def _fail(self, number: str | int | None, error: RpcError) -> None:
        about: Json = {"code": error.code, "message": str(error)}
        if error.data is not None:
            about["data"] = error.data
        await self._send({"jsonrpc": "2.0", "id": number, "error": about})

    async def _handle(self, method: str, params: Json) -> Json:
        if method == "initialize":
            return self._initialize(params)
        if method == "ping":
            return {}
        if method == "tools/list":
            return {"tools": TOOLS}
        if method == "tools/call":
            return await self._call(params)
        raise RpcError(_UNKNOWN, f"unknown method {method!r}")

    def _initialize(self, params: Json) -> Json:
        wanted = params.get("protocolVersion")
        return {
            "protocolVersion": wanted if wanted in VERSIONS else VERSIONS[0],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "baleen", "version": __version__},
            "instructions": f"Tools on one sandbox of image {self._options.image!r}.",
        }

    async def _call(self, params: Json) -> Json:
        name, arguments = params.get("name"), params.get("arguments") or {}
        tool = self._tools.get(name or "")
        if tool is None:
            raise RpcError(_BAD_PARAMS, f"unknown tool {name!r}")
        schema = next(x["inputSchema"] for x in TOOLS if x["name"] == name)
        try:
            _check(schema, arguments)
            text, is_error = await tool(arguments), False
        except (ToolError, BoxFileError) as error:
            text, is_error = str(error), True
        return {"content": [{"type": "text", "text": text}], "isError": is_error}

    async def _sandbox(self) -> Sandbox:
        async with self._making:
            if self._box is None:
                self._box = await Sandbox.create(**self._options.arguments())
            return self._box

    async def _bash(self, arguments: Json) -> str:
        box = await self._sandbox()
        result = await box.run(
            ["bash", "-c", arguments["command"]],
            timeout_s=arguments.get("timeout_s", DEFAULT_TIMEOUT_S),
            cwd=arguments.get("cwd"),
            max_output_bytes=MAX_TEXT_BYTES,
        )
        parts = [result.text, result.stderr.decode("utf-8", "replace")]
        text = "".join(part if part.endswith("\n") or not part else f"{part}\n" for part in parts)
        if result.truncated:
            text += f"[output beyond {MAX_TEXT_BYTES} bytes of a stream was dropped]\n"
        if result.timed_out:
            text += "[killed: out of time]\n"
        return f"{text}[exit code {result.exit_code}]"

    async def _text(self, path: str) -> str:
        data = await (await self._sandbox()).files.read(_absolute(path))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ToolError(f"{path} is not UTF-8 text") from None

    async def _read_file(self, arguments: Json) -> str:
        text = await self._text(arguments["path"])
        if "offset" in arguments or "limit" in arguments:
            lines = text.splitlines(keepends=True)
            first = arguments.get("offset", 1) - 1
            text = "".join(lines[first : first + arguments.get("limit", len(lines))])
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise ToolError(f"longer than {MAX_TEXT_BYTES} bytes; use offset and limit")
        return text

    async def _write_file(self, arguments: Json) -> str:
        box = await self._sandbox()
        await box.files.write(_absolute(arguments["path"]), arguments["content"])
        return f"wrote {len(arguments['content'].encode())} bytes"

    async def _edit(self, arguments: Json) -> str:
        path, old, new = arguments["path"], arguments["old"], arguments["new"]
        text = await self._text(path)
        count = text.count(old) if old else 0
        if count == 0:
            raise ToolError(f"the text to replace is not in {path}")
        if count > 1 and not arguments.get("replace_all"):
            raise ToolError(f"the text to replace is {count} times in {path}; take more of it")
        box = await self._sandbox()
        await box.files.write(path, text.replace(old, new))
        return f"replaced {count}"


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ToolError(f"{path!r} is not an absolute path")
    return path


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
}


def _check(schema: Json, arguments: Json) -> None:
    """Refuses arguments that the schema does not allow, in words that a model can use."""
    for name in schema["required"]:
        if name not in arguments:
            raise ToolError(f"argument {name!r} is missing")
    for name, value in arguments.items():
        about = schema["properties"].get(name)
        if about is None:
            raise ToolError(f"unknown argument {name!r}; there are {list(schema['properties'])}")
        is_boolean = isinstance(value, bool)
        if not isinstance(value, _TYPES[about["type"]]) or is_boolean != (
            about["type"] == "boolean"
        ):
            raise ToolError(f"argument {name!r} must be a {about['type']}")
        if "minimum" in about and value < about["minimum"]:
            raise ToolError(f"argument {name!r} must be at least {about['minimum']}")
    if arguments.get("timeout_s", 1) <= 0:
        raise ToolError("argument 'timeout_s' must be positive")


async def serve_stdio(options: BoxOptions) -> None:
    """Serves one client on this process's standard streams."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    turn = asyncio.Lock()

    async def send(message: Json) -> None:
        data = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        async with turn:
            await asyncio.to_thread(_write, data)

    await McpServer(options, send).serve(reader)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
