"""Spans on their way to a collector, over OTLP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ..conftest import ASKED


class Collector:
    """Takes spans at `/v1/traces`."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.path == "/v1/traces"
        told = ExportTraceServiceRequest.FromString(await request.read())
        for resource in told.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.services.add(attributes["service.name"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    runner = web.ServerRunner(web.Server(found.handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


async def serve_and_ask(home: Path, endpoint: str) -> tuple[int | None, str]:
    """`baleen serve nano`, one answer, and its end: exit code and what it said on stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "baleen.cli.main", "serve", "nano", "--port", "0"),
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "BALEEN_HOME": str(home),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        },
    )
    assert process.stderr is not None
    try:
        line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            url = f"{line.split()[-1]}/v1/chat/completions"
            response = await http.post(url, json={"messages": ASKED, "max_tokens": 8})
        assert response.status_code == 200
        process.send_signal(signal.SIGTERM)
        _, said = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, said.decode()


async def test_what_has_ended_is_told_before_the_gateway_ends(
    tmp_path: Path, collector: Collector
) -> None:
    code, said = await serve_and_ask(tmp_path, collector.url)
    assert code == 0, said
    by_name = {span.name: span for span in collector.spans}
    root = by_name["chat nano"]
    for name in ("encode", "upstream"):
        assert by_name[name].parent_span_id == root.span_id
    assert by_name["first_token"].parent_span_id == by_name["upstream"].span_id
    attributes = {each.key: each.value for each in root.attributes}
    assert attributes["gen_ai.usage.output_tokens"].int_value == 8
    assert collector.services == {"baleen"}


async def test_a_collector_that_is_not_there_costs_no_answer(tmp_path: Path) -> None:
    code, said = await serve_and_ask(tmp_path, "http://127.0.0.1:9")
    assert code == 0, said
    assert "Traceback" not in said
