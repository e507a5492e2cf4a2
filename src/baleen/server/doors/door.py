"""What all doors share: a request in, an answer out, errors in the door's own form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web
from aiohttp.web_request import BaseRequest

from baleen.errors import BaleenError, ProtocolError
from baleen.protocol.events import Event
from baleen.server.answers.answer import Answer
from baleen.server.errors import ServerError
from baleen.server.gateway import Gateway
from baleen.server.requests.ask import Ask
from baleen.server.requests.prepared import Prepared
from baleen.server.room import Room
from baleen.server.wire.sse import EventStream, KeepAlive, WholeResponse

if TYPE_CHECKING:
    from baleen.server.observing.tracing import RequestTrace

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Call:
    """One HTTP request, read."""

    request: BaseRequest
    body: dict[str, Any]
    scope: str
    trace: RequestTrace | None = None


class Writer(Protocol):
    """Turns the events of one answer into a dialect."""

    def begin(self) -> str:
        """What is sent before the first event."""
        ...

    def feed(self, events: list[Event]) -> str:
        """What some events become."""
        ...

    def finish(self) -> str:
        """What is sent when the answer has ended."""
        ...

    def whole(self) -> dict[str, Any]:
        """The answer as one object, for a client that does not stream."""
        ...

    def failed(self, status: int, error: dict[str, Any]) -> str:
        """What is sent when the answer breaks off."""
        ...


class Door(Protocol):
    """One dialect at one path."""

    async def handle(self, call: Call) -> web.StreamResponse:
        """Answer a request."""
        ...

    def error_body(self, status: int, error: dict[str, Any]) -> dict[str, Any]:
        """An error in the dialect's form."""
        ...


class AnswerDoor:
    """Base of the doors that generate: streams an answer, or waits for all of it."""

    silence = ": keep-alive\n\n"

    def __init__(self, gateway: Gateway, keep_alive: KeepAlive) -> None:
        self.gateway = gateway
        self._keep_alive = keep_alive

    def error_body(self, status: int, error: dict[str, Any]) -> dict[str, Any]:
        """An error as Chat Completions has it."""
        return {"error": error}

    async def respond(
        self, call: Call, prepared: Prepared, answer: Answer, writer: Writer
    ) -> web.StreamResponse:
        """Generate an answer for a client."""
        headers = {**prepared.headers, "x-request-id": answer.id}
        answer.open()
        try:
            if prepared.ask.stream:
                return await self._stream(call, answer, writer, headers)
            return await self._whole(call, answer, writer, headers)
        finally:
            answer.leave()

    async def _whole(
        self, call: Call, answer: Answer, writer: Writer, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        response = WholeResponse(call.request, headers, self._keep_alive)
        try:
            await answer.run(_Collector(writer))
        except BaleenError as error:
            if not response.has_begun:
                raise
            _log.warning("%s broke off: %s", answer.id, error)
            if call.trace is not None:
                call.trace.failed(error)
            return await response.finish(dumps(self.error_body(*describe(error))))
        finally:
            response.discard()
        return await response.finish(dumps(writer.whole(), ensure_ascii=False))

    async def _stream(
        self, call: Call, answer: Answer, writer: Writer, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Stream; headers go out with the first words, so that early errors keep their status."""
        stream = EventStream(headers, self._keep_alive, self.silence)
        response: web.StreamResponse | None = None
        try:
            response = await stream.open(call.request)
            stream.write(writer.begin())
            await answer.run(_Speaker(stream, writer))
            stream.write(writer.finish())
            await stream.close()
        except (asyncio.CancelledError, ConnectionError):
            stream.discard()
            self.gateway.telemetry.disconnects.add()
            if call.trace is not None:
                call.trace.failed(ConnectionResetError("the client has left"))
            raise
        except Exception as error:
            if response is None:
                raise
            told = self.told(error, answer.id)
            if call.trace is not None:
                call.trace.failed(told)
            stream.write(writer.failed(*describe(told)))
            await stream.close()
        return response

    @staticmethod
    def told(error: Exception, answer_id: str) -> BaleenError:
        """What of an error is told to a client whose answer has begun."""
        if isinstance(error, BaleenError):
            _log.warning("%s broke off: %s", answer_id, error)
            return error
        _log.error("%s failed", answer_id, exc_info=error)
        return ServerError("the gateway failed; its log has more")

    def scoped(self, ask: Ask, call: Call) -> Ask:
        """An ask with what its HTTP request says beside the body."""
        headers = call.request.headers
        ask.scope, ask.trace = call.scope, call.trace
        ask.key = headers.get("idempotency-key", "")
        ask.place = {
            name: value
            for name in ("episode", "turn")
            if (value := headers.get(f"x-baleen-{name}")) is not None
        }
        return ask


class _Collector:
    """Listens for a client that wants the answer whole."""

    def __init__(self, writer: Writer) -> None:
        self.room, self._feed = Room(), writer.feed

    def hear(self, events: list[Event]) -> None:
        """The writer notes what it needs for the whole."""
        self._feed(events)


class _Speaker:
    """Listens for a client that wants to hear it as it comes."""

    def __init__(self, stream: EventStream, writer: Writer) -> None:
        self.room, self._write, self._feed = stream.room, stream.write, writer.feed

    def hear(self, events: list[Event]) -> None:
        """Send what the events become in the client's dialect."""
        if text := self._feed(events):
            self._write(text)


def describe(error: BaleenError) -> tuple[int, dict[str, Any]]:
    """HTTP status and error object of an error."""
    if isinstance(error, ServerError):
        status, kind = error.status, error.kind
        code = kind if status == 400 else error.code
        return status, _object(error, kind, code)
    if isinstance(error, ProtocolError):
        described = _object(error, "invalid_request_error", "invalid_request_error")
        index, field = getattr(error, "index", None), getattr(error, "field", None)
        if index is not None or field is not None:
            described["baleen"] = {"message": index, "field": field, "remedy": error.remedy}
        return 400, described
    return 500, _object(error, "server_error", error.code)


def _object(error: BaleenError, kind: str, code: str) -> dict[str, Any]:
    text = error.message if isinstance(error, ProtocolError) or not error.remedy else str(error)
    return {"message": text, "type": kind, "param": None, "code": code}
