"""The wire to an engine: bodies however they are cut, connections kept, engines held up."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.errors import ConfigError
from baleen.server.base import Piece
from baleen.server.errors import UpstreamError
from baleen.server.room import Room
from baleen.server.upstreams.http_body import BodyReader
from baleen.server.upstreams.http_client import EngineClient

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Taker:
    """Takes events; full while it is told to be."""

    def __init__(self) -> None:
        self.room = Room()

    def take(self, piece: Piece) -> bool:
        raise AssertionError("this one is given events")


@pytest.fixture
async def engine() -> AsyncIterator[Callable[..., Awaitable[tuple[EngineClient, list[Any]]]]]:
    """Serves raw answers; gives the client and the connections that were made."""
    opened: list[Any] = []

    async def start(answer: Answer, path: str = "") -> tuple[EngineClient, list[Any]]:
        connections: list[Any] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(writer)
            try:
                await answer(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = EngineClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}")
        opened.append((server, client, connections))
        return client, connections

    yield start
    for server, client, connections in opened:
        await client.close()
        for writer in connections:
            writer.close()
        server.close()
        await server.wait_closed()


async def request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """One request: its first line and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    sizes = [line for line in head.lower().split("\r\n") if line.startswith("content-length")]
    size = int(sizes[0].split(":")[1]) if sizes else 0
    return head.split("\r\n")[0], await reader.readexactly(size)


def framed(parts: list[bytes], end: bytes = b"0\r\n\r\n") -> bytes:
    """Some bytes in chunks."""
    return b"".join(b"%X;x=y\r\n%b\r\n" % (len(part), part) for part in parts if part) + end


@given(
    parts=st.lists(st.binary(max_size=40), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    end=st.sampled_from([b"0\r\n\r\n", b"0\r\nx-trailer: 1\r\ny: 2\r\n\r\n", b"000\r\n\r\n"]),
)
def test_a_chunked_body_reads_the_same_however_it_is_cut(
    parts: list[bytes], cuts: list[int], end: bytes
) -> None:
    data = framed(parts, end)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = BodyReader(200, {"transfer-encoding": "chunked"})
    found = b""
    for start, stop in itertools.pairwise(places):
        assert not reader.is_over or start == stop
        found += reader.feed(data[start:stop])
    assert found == b"".join(parts)
    assert reader.is_over
    assert not reader.has_surplus


def test_bytes_behind_a_body_are_noticed() -> None:
    chunked = BodyReader(200, {"transfer-encoding": "chunked"})
    assert chunked.feed(framed([b"ab"]) + b"HTTP/1.1") == b"ab"
    assert chunked.has_surplus
    counted = BodyReader(200, {"content-length": "2"})
    assert counted.feed(b"abc") == b"ab"
    assert counted.has_surplus


@pytest.mark.parametrize("line", [b"xyz\r\nabc\r\n", b"\r\n", b"5" * 5_000])
def test_chunks_without_sense_are_an_error(line: bytes) -> None:
    with pytest.raises(ConnectionError, match="chunk"):
        BodyReader(200, {"transfer-encoding": "chunked"}).feed(line)


async def test_one_connection_serves_one_answer_after_the_other(engine: Any) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            line, body = await request(reader)
            if line.startswith("GET"):
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{"a":1}')
            else:
                event = b"data: %b\n\n" % body
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                writer.write(framed([event, event[:5], event[5:], b"data: [DONE]\n\n"]))

    client, connections = await engine(answer, "/base/v1")
    found: list[Any] = []

    def take(events: list[Any]) -> bool:
        found.extend(events)
        return True

    for number in range(3):
        await client.events("/x", {"n": number}, take, Taker())
    assert await client.get("/y") == {"a": 1}
    assert found == [{"n": number} for number in range(3) for _ in range(2)]
    assert len(connections) == 1


async def test_a_connection_that_the_engine_closed_meanwhile_is_replaced(engine: Any) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue")

    client, connections = await engine(answer)
    for _ in range(3):
        assert await client.whole("/x", {}) is True
    assert len(connections) == 3


async def test_a_taker_that_has_enough_ends_the_connection(engine: Any) -> None:
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(framed([b"data: {}\n\n"], b""))
        await reader.read()
        gone.set()

    client, _ = await engine(answer)
    await client.events("/x", {}, lambda events: False, Taker())
    await asyncio.wait_for(gone.wait(), 5)


async def test_an_engine_is_held_up_while_the_taker_is_full(engine: Any) -> None:
    event = b"data: " + json.dumps({"text": "x" * 8_000}).encode() + b"\n\n"
    sent, total = 0, 4_000

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while sent < total:
            sent += 1
            writer.write(framed([event], b""))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    client, _ = await engine(answer)
    taker, taken = Taker(), 0

    def take(events: list[Any]) -> bool:
        nonlocal taken
        taken += len(events)
        if taken == len(events):
            taker.room.fill()
        return True

    task = asyncio.create_task(client.events("/x", {}, take, taker))
    while taken == 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    held, first = sent, taken
    await asyncio.sleep(0.2)
    assert (sent, taken) == (held, first)
    assert held < total / 2
    taker.room.clear()
    await asyncio.wait_for(task, 30)
    assert taken == total


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-x\r\n\r\n", "no HTTP response"),
        (b"", "hung up"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "chunk"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "hung up"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\ndata: {no}\n\n", "no JSON"),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno", "answered 500: no"),
    ],
)
async def test_what_an_engine_does_wrong_is_named(engine: Any, answer: bytes, why: str) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answer)

    client, _ = await engine(say)
    with pytest.raises(UpstreamError, match=why):
        await client.events("/x", {}, lambda events: True, Taker())


async def test_numbers_that_are_no_json_are_read_as_engines_mean_them(engine: Any) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        data = b'data: {"logprob": -Infinity}\r\n\r\n'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data))

    client, _ = await engine(say)
    found: list[Any] = []
    await client.events("/x", {}, lambda events: not found.extend(events), Taker())
    assert found == [{"logprob": float("-inf")}]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "/v1"])
def test_an_address_without_sense_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        EngineClient(url)
