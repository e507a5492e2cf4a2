"""The HTTP server: paths, keys, limits on what a client may do, and a graceful end."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aiohttp import web
from aiohttp.web_request import BaseRequest

from baleen.errors import BaleenError
from baleen.server.doors.chat import ChatDoor
from baleen.server.doors.completions import CompletionsDoor
from baleen.server.doors.door import Call, describe
from baleen.server.doors.messages import MessagesDoor
from baleen.server.doors.models import ModelsDoor
from baleen.server.doors.page import PageDoor
from baleen.server.doors.responses import ResponsesDoor
from baleen.server.doors.tokens import TokensDoor
from baleen.server.errors import (
    BadRequestError,
    NoSuchPathError,
    NotAuthorizedError,
    ServerError,
    SlowClientError,
    TooLargeError,
    WrongMethodError,
)
from baleen.server.gateway import Gateway
from baleen.server.wire.connection import Connector
from baleen.server.wire.sse import KeepAlive

_log = logging.getLogger(__name__)
_OPEN_PATHS: Final = frozenset({"/", "/health", "/metrics"})
"""Paths that need no key: they show numbers, never what was said."""
_CLIENT_LEFT: Final = 499

Handle = Callable[[Call], Awaitable[web.StreamResponse]]
ErrorBody = Callable[[int, dict[str, Any]], dict[str, Any]]


class Route(NamedTuple):
    """What answers a method at a path."""

    method: str
    handle: Handle
    error_body: ErrorBody


class HttpServer:
    """Serves one gateway at one address."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._keep_alive = KeepAlive(gateway.config.keep_alive_s)
        self._routes = self._make_routes()
        self._scopes = {key: _scope(key) for key in gateway.config.api_keys}
        self._connections = 0
        self._runner: web.ServerRunner | None = None
        self._ticker: asyncio.Task[None] | None = None
        self.is_hurried = False
        """Set while it stops: breaks off what has begun."""

    def _make_routes(self) -> dict[str, Route]:
        gateway, keep_alive = self.gateway, self._keep_alive
        models = ModelsDoor(gateway)
        chat = ChatDoor(gateway, keep_alive)
        messages = MessagesDoor(gateway, keep_alive)
        responses = ResponsesDoor(gateway, keep_alive)
        completions = CompletionsDoor(gateway, keep_alive)
        tokens = TokensDoor(gateway, keep_alive)
        return {
            "/v1/chat/completions": Route("POST", chat.handle, chat.error_body),
            "/v1/messages": Route("POST", messages.handle, messages.error_body),
            "/v1/messages/count_tokens": Route("POST", messages.count, messages.error_body),
            "/v1/responses": Route("POST", responses.handle, responses.error_body),
            "/v1/completions": Route("POST", completions.handle, completions.error_body),
            "/tokenize": Route("POST", tokens.tokenize, tokens.error_body),
            "/detokenize": Route("POST", tokens.detokenize, tokens.error_body),
            "/": Route("GET", PageDoor().handle, models.error_body),
            "/v1/models": Route("GET", models.models, models.error_body),
            "/v1/models/": Route("GET", models.model, models.error_body),
            "/health": Route("GET", models.health, models.error_body),
            "/metrics": Route("GET", models.metrics, models.error_body),
        }

    # --- life ----------------------------------------------------------------------------------

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port."""
        self._ticker = asyncio.create_task(self._keep_alive.run())
        server = Connector(
            self._handle,
            limit=self.gateway.config.max_connections,
            patience_s=self.gateway.config.body_timeout_s,
        )
        self._runner = web.ServerRunner(server, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=1024)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Take nothing new, finish what has begun within the drain time, let go."""
        self.gateway.is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self.gateway.config.drain_timeout_s):
                while self.gateway.running and not self.is_hurried:
                    await asyncio.sleep(0.02)
        if self._ticker is not None:
            self._ticker.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        await self.gateway.close()

    # --- requests ------------------------------------------------------------------------------

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        route = self._routes.get(request.path)
        if route is None:
            # Only models have names below their path.
            is_model = request.path.startswith("/v1/models/")
            route = self._routes["/v1/models/"] if is_model else None
        tracing = self.gateway.tracing
        trace = tracing.begin(request.path, request.headers) if tracing is not None else None
        try:
            if route is None:
                raise NoSuchPathError(
                    f"there is nothing at {request.path}",
                    remedy=f"there are {', '.join(sorted(self._routes))}",
                )
            is_head = request.method == "HEAD" and route.method == "GET"
            if request.method != route.method and not is_head:
                raise WrongMethodError(f"{request.path} takes {route.method}")
            scope = self._authorize(request)
            body = await self._body(request) if route.method == "POST" else {}
            return await route.handle(Call(request, body, scope, trace))
        except BaleenError as error:
            if trace is not None:
                trace.failed(error)
            return self._refuse(request, route, error)
        except ConnectionError:  # the client has left, and is told nothing any more
            return web.Response(status=_CLIENT_LEFT)
        except web.HTTPException:
            raise
        except Exception:
            _log.exception("%s failed", request.path)
            return self._refuse(request, route, ServerError("the gateway failed; its log has more"))
        finally:
            if trace is not None:
                trace.end()

    def _refuse(
        self, request: BaseRequest, route: Route | None, error: BaleenError
    ) -> web.Response:
        status, described = describe(error)
        self.gateway.telemetry.rejections.add(1, error.code)
        if status >= 500:
            _log.error("%s: %s", request.path, error)
        body = route.error_body(status, described) if route else {"error": described}
        headers = {"retry-after": "1"} if status in (429, 503) else {}
        response = web.json_response(body, status=status, headers=headers)
        if status in (408, 413):
            response.force_close()
        return response

    def _authorize(self, request: BaseRequest) -> str:
        """Whose request it is; the scope of its turns.

        Raises:
            NotAuthorizedError: keys are asked for, and it has none of them.
        """
        if not self._scopes or request.path in _OPEN_PATHS:
            return ""
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = given or request.headers.get("x-api-key", "")
        for key, scope in self._scopes.items():
            if hmac.compare_digest(key.encode(), given.encode()):
                return scope
        raise NotAuthorizedError(
            "Authentication Fails: the API key is missing or unknown here",
            remedy="send it as `Authorization: Bearer KEY` or as `x-api-key`",
        )

    async def _body(self, request: BaseRequest) -> dict[str, Any]:
        """The JSON object of a request.

        Raises:
            TooLargeError: it is longer than allowed.
            SlowClientError: it does not arrive in time.
            BadRequestError: it is no JSON object.
        """
        config = self.gateway.config
        if (request.content_length or 0) > config.max_body_bytes:
            raise _too_large(config.max_body_bytes)
        data = bytearray()
        if request.headers.get("expect", "").lower() == "100-continue" and request.transport:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(config.body_timeout_s):
                async for chunk in request.content.iter_any():
                    data += chunk
                    if len(data) > config.max_body_bytes:
                        raise _too_large(config.max_body_bytes)
        except web.RequestPayloadError as error:
            raise BadRequestError(f"the body cannot be read: {error.args[-1]}") from error
        except TimeoutError as error:
            raise SlowClientError(
                f"the body did not arrive within {config.body_timeout_s:g} s"
            ) from error
        return _json_object(bytes(data))


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(
        f"the body is longer than {limit} bytes", remedy="compact the conversation"
    )


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError(f"the body must be a JSON object, not {type(body).__name__}")
    return body


def _scope(key: str) -> str:
    """A name for a key's turns that does not give the key away."""
    return hashlib.sha256(f"baleen scope {key}".encode()).hexdigest()[:16]
