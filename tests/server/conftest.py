"""A gateway in front of a script, on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from baleen.assets import nano_dir
from baleen.server.config import GatewayConfig
from baleen.server.gateway import Gateway
from baleen.server.http import HttpServer
from baleen.server.upstreams.scripted import Script, ScriptedUpstream

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather by city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = (
    "Two lookups.</think>Checking.\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Köln</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    '<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Bonn</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls>"
)
ASKED = [{"role": "user", "content": "Weather in Köln?"}]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The tokenizer of the bundled checkpoint."""
    return Tokenizer.from_file(str(nano_dir() / "tokenizer.json"))


@dataclass
class Served:
    """A running gateway."""

    url: str
    server: HttpServer
    upstream: Any
    http: httpx.AsyncClient

    @property
    def gateway(self) -> Gateway:
        return self.server.gateway

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return await self.http.post(path, json=body, headers=headers)

    async def chat(self, messages: Any = ASKED, **fields: Any) -> dict[str, Any]:
        """A whole answer."""
        response = await self.post("/v1/chat/completions", {"messages": messages, **fields})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve(tokenizer: Tokenizer) -> AsyncIterator[Serve]:
    """Starts gateways in front of scripts or other upstreams; ends them with the test."""
    async with AsyncExitStack() as stack:

        async def start(
            script: Script | str | Any,
            *,
            state_dir: Path | None = None,
            upstream_options: dict[str, Any] | None = None,
            tracer: Any = None,
            **fields: Any,
        ) -> Served:
            said = script
            if isinstance(said, str):

                def script(_: Any) -> str:
                    return said

            upstream = (
                ScriptedUpstream(tokenizer, script, **(upstream_options or {}))
                if callable(script)
                else script
            )
            config = replace(
                GatewayConfig(state_dir=state_dir, drain_timeout_s=1.0, effort="low"), **fields
            )
            server = HttpServer(Gateway(config, tokenizer, upstream, tracer))
            port = await server.start("127.0.0.1", 0)
            stack.push_async_callback(server.stop)
            url = f"http://127.0.0.1:{port}"
            http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)
            )
            return Served(url, server, upstream, http)

        yield start
