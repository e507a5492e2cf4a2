"""Long texts are dealt with beside the event loop."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from baleen.protocol.tokenizing import SegmentEncoder
from baleen.server.requests.aside import aside

from ..conftest import Serve

LONG = "word " * 20_000


async def test_long_work_has_a_thread_of_its_own_and_short_work_has_none() -> None:
    here = threading.get_ident()
    assert await aside(10, threading.get_ident) == here
    assert await aside(10_000_000, threading.get_ident) != here


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 9}),
        ("/v1/responses", {"input": LONG}),
        ("/v1/completions", {"prompt": LONG}),
        ("/tokenize", {"prompt": LONG}),
    ],
)
async def test_no_long_text_is_cut_into_tokens_on_the_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str, body: Any
) -> None:
    encode, threads = SegmentEncoder.encode_text, set[int]()

    def watched(self: SegmentEncoder, text: str) -> list[int]:
        if len(text) >= len(LONG) - 1:
            threads.add(threading.get_ident())
        return encode(self, text)

    monkeypatch.setattr(SegmentEncoder, "encode_text", watched)
    served = await serve("a</think>b")
    assert (await served.post(path, body)).status_code == 200
    assert threads
    assert threading.get_ident() not in threads
