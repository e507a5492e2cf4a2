"""What one streamed token costs in the gateway's own code: from vLLM's chunk to the client's event.

No socket and no event loop is in it, so other load on the machine hardly matters. The chunks go
through everything else that a token goes through: parsing, loop detection, the token log, metrics,
the writer of Chat Completions.

    python benchmarks/gateway_path.py
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from results import write_results
from tokenizers import Tokenizer

from baleen.assets import nano_dir
from baleen.server.answers.answer import Answer
from baleen.server.config import GatewayConfig
from baleen.server.doors.chat import ChatWriter
from baleen.server.gateway import Gateway
from baleen.server.requests.ask import read_ask
from baleen.server.room import Room
from baleen.server.upstreams.http_client import EngineClient
from baleen.server.upstreams.http_connection import HttpConnection
from baleen.server.upstreams.vllm import VllmUpstream
from baleen.server.wire.sse import EventStream, KeepAlive

TOKENS = 4_000
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Nowhere:
    """A transport whose bytes go nowhere."""

    def write(self, data: bytes) -> None:
        """Drop it."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """There is nothing to break."""


class Engine(EngineClient):
    """An engine whose bytes are put into its connection by hand."""

    connection: HttpConnection

    async def _connect(self) -> HttpConnection:
        self.connection = HttpConnection(self._buffer)
        self.connection.connection_made(Nowhere())
        return self.connection

    async def get(self, path: str) -> Any:
        return {"data": [{"id": "v4", "max_model_len": 1 << 20}]} if "models" in path else None

    def sends(self, data: bytes) -> None:
        """What the event loop does when bytes have come."""
        buffer = self.connection.get_buffer(-1)
        buffer[: len(data)] = data
        self.connection.buffer_updated(len(data))


class Client:
    """Hears an answer as a streaming client does."""

    def __init__(self, answer: Answer, gateway: Gateway) -> None:
        self.room, stream = Room(), EventStream({}, KeepAlive(10))
        stream._transport = Nowhere()  # type: ignore[assignment]
        self._write, self._feed = stream.write, ChatWriter(answer, "v4", gateway).feed

    def hear(self, events: list[Any]) -> None:
        if text := self._feed(events):
            self._write(text)


def chunk(number: int) -> bytes:
    """One token as vLLM streams it."""
    choice = {"index": 0, "text": "w", "logprobs": None, "finish_reason": None}
    body = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "v4",
        "choices": [{**choice, "stop_reason": None, "token_ids": [number]}],
        "usage": None,
    }
    data = b"data: %b\n\n" % json.dumps(body).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def per_token_us(state_dir: Path | None, rounds: int = 8) -> float:
    """The least of some rounds, in microseconds of processor time."""
    tokenizer = Tokenizer.from_file(str(nano_dir() / "tokenizer.json"))
    engine = Engine("http://engine:1")
    config = GatewayConfig(uses_grammar=False, state_dir=state_dir)
    gateway = Gateway(config, tokenizer, VllmUpstream(engine))
    messages = [{"role": "user", "content": "Say words."}]
    body = {"messages": messages, "stream": True, "max_tokens": 393_216}
    answer = gateway.answer(await gateway.prepare(read_ask(body, config)), "chatcmpl-" + "0" * 32)
    answer.open()
    run = asyncio.create_task(answer.run(Client(answer, gateway)))
    while not hasattr(engine, "connection"):
        await asyncio.sleep(0)
    engine.sends(HEAD)
    await asyncio.sleep(0.01)
    dice = random.Random(0)
    words = [n for n in range(300, 700) if (tokenizer.id_to_token(n) or "").isalpha()]
    took: list[float] = []
    gc.disable()
    for _ in range(rounds):
        chunks = [chunk(dice.choice(words)) for _ in range(TOKENS)]
        started = time.process_time()
        for data in chunks:
            engine.sends(data)
        took.append((time.process_time() - started) / TOKENS * 1e6)
    gc.enable()
    assert len(answer.sampled) == rounds * TOKENS, "every token came through"
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await gateway.close()
    print(f"rounds: {statistics.median(took):.2f} us in the median")
    return min(took)


async def main() -> None:
    """Measure with and without the token log."""
    with tempfile.TemporaryDirectory() as folder:
        logged = await per_token_us(Path(folder))
    rows = [
        {"what": "a token, processor time", "value": logged, "unit": "us"},
        {"what": "without the token log", "value": await per_token_us(None), "unit": "us"},
    ]
    for row in rows:
        print(f"{row['what']:40} {row['value']:8.2f} {row['unit']}")
    write_results("gateway_path", rows)


if __name__ == "__main__":
    asyncio.run(main())
