"""A stand-in for vLLM that costs next to nothing: streams token chunks at a given pace.

`python benchmarks/gateway_engine.py PACE_MS` prints its port. Chunks are as vLLM writes them, one
token each; with a pace of 0 they come as fast as the socket takes them.
"""

from __future__ import annotations

import asyncio
import json
import sys

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def chunk(number: int, finish: str | None, text: str = "word ") -> bytes:
    """One chunk, framed."""
    choice = {
        "index": 0,
        "text": text,
        "logprobs": None,
        "finish_reason": finish,
        "stop_reason": None,
        "token_ids": [number],
        "prompt_token_ids": None,
    }
    event = {
        "id": "cmpl-5f2a1b9c8d7e4f60",
        "object": "text_completion",
        "created": 1795465171,
        "model": "v4",
        "choices": [choice],
        "usage": None,
    }
    data = f"data: {json.dumps(event)}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Engine:
    """Answers every completion with `max_tokens` tokens: half reasoning, half content."""

    def __init__(self, pace_s: float) -> None:
        self.pace_s = pace_s
        self._plain, self._close, self._end = chunk(404, None), chunk(7, None, ""), chunk(1, "stop")

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = next(
                (
                    int(line.split(":")[1])
                    for line in head.splitlines()
                    if line.lower().startswith("content-length")
                ),
                0,
            )
            body = json.loads(await reader.readexactly(size)) if size else {}
            await (self._stream(writer, body) if body else self._describe(writer, head))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _describe(self, writer: asyncio.StreamWriter, asked: str) -> None:
        path = asked.split()[1]
        found = {
            "/v1/models": {"data": [{"id": "v4", "max_model_len": 1 << 20}]},
            "/version": {"version": "0.33.0"},
        }.get(path)
        status = "200 OK" if found else "404 Not Found"
        data = json.dumps(found or {}).encode()
        head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, int]) -> None:
        count = int(body["max_tokens"])
        writer.write(HEAD)
        for number in range(count):
            if writer.is_closing():
                return  # whoever asked has left
            is_last, is_middle = number == count - 1, number == count // 2
            writer.write(self._end if is_last else self._close if is_middle else self._plain)
            if self.pace_s:
                await asyncio.sleep(self.pace_s)
            elif number % 64 == 0:
                await writer.drain()
        usage = b'data: {"choices": [], "usage": {"prompt_tokens": 9}}\n\ndata: [DONE]\n\n'
        writer.write(f"{len(usage):x}\r\n".encode() + usage + b"\r\n0\r\n\r\n")
        await writer.drain()


async def main(pace_s: float) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Engine(pace_s), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) / 1000))
