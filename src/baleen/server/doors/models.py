"""What is served, and whether it is ready."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

import baleen
from baleen.server.doors.door import Call
from baleen.server.errors import NoSuchPathError, UpstreamError
from baleen.server.gateway import Gateway


class ModelsDoor:
    """`GET /v1/models`, `/v1/models/NAME`, `/health` and `/metrics`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._created = int(time.time())

    def error_body(self, status: int, error: dict[str, Any]) -> dict[str, Any]:
        """An error as Chat Completions has it."""
        return {"error": error}

    async def models(self, call: Call) -> web.StreamResponse:
        """The one model."""
        return web.json_response({"object": "list", "data": [await self._card()]})

    async def model(self, call: Call) -> web.StreamResponse:
        """The one model, by its name."""
        name = call.request.path.removeprefix("/v1/models/")
        if name != self._gateway.config.model_name:
            raise NoSuchPathError(f"there is no model {name!r} here")
        return web.json_response(await self._card())

    async def _card(self) -> dict[str, Any]:
        name = self._gateway.config.model_name
        card = {"id": name, "object": "model", "created": self._created, "owned_by": "baleen"}
        try:
            capabilities = await self._gateway.capabilities()
        except UpstreamError:
            return card
        return {
            **card,
            "display_name": name,
            "type": "model",
            "max_model_len": capabilities.context_tokens,
            "baleen": {
                "version": baleen.__version__,
                "revision": self._gateway.config.revision,
                "upstream": capabilities.name,
                "calls_grammar": capabilities.calls_grammar,
                "json_grammar": capabilities.json_grammar,
                "logprobs": capabilities.logprobs,
            },
        }

    async def health(self, call: Call) -> web.StreamResponse:
        """200 when requests can be answered, else 503."""
        if await self._gateway.is_ready():
            return web.json_response({"status": "ok"})
        status = "draining" if self._gateway.is_draining else "upstream unreachable"
        return web.json_response({"status": status}, status=503)

    async def metrics(self, call: Call) -> web.StreamResponse:
        """Prometheus' text format."""
        text = self._gateway.telemetry.registry.text()
        return web.Response(text=text, content_type="text/plain", charset="utf-8")
