"""OpenTelemetry spans of a request, by the conventions for generative AI; what is said stays out.

::

    chat MODEL            the request, from its headers to its last byte; child of `traceparent`
    ├── encode            from messages to token ids
    ├── upstream          one per time that the engine is asked to go on
    │   └── first_token   until something comes
    └── tool_call NAME    one per call, while the model writes it

Without a tracer there is no object of this file, and nothing here is imported from elsewhere.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from baleen.protocol.events import CallEnd, CallStart

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from baleen.server.answers.answer import Answer
    from baleen.server.requests.prepared import Prepared

_log = logging.getLogger(__name__)
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
_SETTINGS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)


class Tracing:
    """Begins the spans of requests."""

    def __init__(self, tracer: Tracer, model_name: str) -> None:
        self._tracer, self._model_name = tracer, model_name

    def begin(self, path: str, headers: Mapping[str, str]) -> RequestTrace | None:
        """The trace of a request; None at paths where nothing is generated."""
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind

        operation = _OPERATIONS.get(path)
        if operation is None:
            return None
        span = self._tracer.start_span(
            f"{operation} {self._model_name}",
            context=propagate.extract({name.lower(): value for name, value in headers.items()}),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "deepseek",
                "gen_ai.response.model": self._model_name,
                "url.path": path,
            },
        )
        return RequestTrace(self._tracer, span)


class RequestTrace:
    """The spans of one request."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer, self.span = tracer, span
        self._context = set_span_in_context(span)
        self._first: Span | None = None
        self._calls: dict[int, Span] = {}

    def _start(self, name: str, **attributes: Any) -> Span:
        return self._tracer.start_span(name, context=self._context, attributes=attributes)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Around the way from messages to token ids."""
        span = self._start("encode")
        try:
            yield
        except Exception as error:
            _fail(span, error)
            raise
        finally:
            span.end()

    def encoded(self, prepared: Prepared) -> None:
        """What is asked for."""
        ask, sampling = prepared.ask, prepared.sampling
        asked = {
            "gen_ai.request.model": ask.model or None,
            "gen_ai.request.max_tokens": prepared.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.seed": ask.seed,
            "gen_ai.request.stream": ask.stream,
            "gen_ai.request.stop_sequences": ask.stop or None,
            "gen_ai.usage.input_tokens": len(prepared.ids),
            "baleen.reasoning_restored": prepared.num_reasoning_restored or None,
            "baleen.cache_break_reason": (prepared.cache_break and str(prepared.cache_break))
            or None,
        }
        self._set(asked)

    @contextmanager
    def upstream(self, num_sampled: int) -> Iterator[None]:
        """Around one stretch of decoding, behind as many tokens of the answer."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        span = self._tracer.start_span(
            "upstream",
            context=self._context,
            kind=SpanKind.CLIENT,
            attributes={"baleen.sampled_before": num_sampled},
        )
        self._first = self._tracer.start_span("first_token", context=set_span_in_context(span))
        try:
            yield
        except BaseException as error:
            _fail(span, error)
            raise
        finally:
            self.token_came()
            span.end()

    def token_came(self) -> None:
        """The engine has begun to speak, or never will."""
        first, self._first = self._first, None
        if first is not None:
            first.end()

    def call(self, event: CallStart | CallEnd) -> None:
        """A call begins or ends."""
        if isinstance(event, CallStart):
            self._calls[event.index] = span = self._start(f"tool_call {event.name}")
            span.set_attribute("gen_ai.tool.name", event.name)
            span.set_attribute("gen_ai.tool.call.id", event.id)
            span.set_attribute("gen_ai.tool.type", "function")
        elif (ended := self._calls.pop(event.index, None)) is not None:
            ended.set_attribute("baleen.call.status", event.status)
            ended.end()

    def answered(self, answer: Answer) -> None:
        """What came of it."""
        first_s = None
        if answer.first_token_at is not None:
            first_s = answer.first_token_at - answer.started_at
        found = {
            "gen_ai.response.id": answer.id,
            "gen_ai.response.finish_reasons": (answer.finish_reason,),
            "gen_ai.response.time_to_first_chunk": first_s,
            "gen_ai.usage.output_tokens": len(answer.sampled),
            "gen_ai.usage.reasoning.output_tokens": answer.num_reasoning_tokens,
            "gen_ai.usage.cache_read.input_tokens": answer.num_cached_tokens,
            "baleen.stall_kind": answer.stall and str(answer.stall),
            "baleen.resumed_tokens": answer.num_resumed_tokens or None,
        }
        self._set(found)

    def completed(self, num_prompt: int, num_sampled: int, finish: str | None) -> None:
        """What came of a request without an answer's bookkeeping."""
        found = {
            "gen_ai.usage.input_tokens": num_prompt,
            "gen_ai.usage.output_tokens": num_sampled,
            "gen_ai.response.finish_reasons": (finish,) if finish else None,
        }
        self._set(found)

    def failed(self, error: BaseException) -> None:
        """The request came to nothing."""
        _fail(self.span, error)

    def end(self) -> None:
        """The last byte is out; calls that were cut off end with it."""
        for span in self._calls.values():
            span.set_attribute("baleen.call.status", "truncated")
            span.end()
        self._calls.clear()
        self.span.end()

    def _set(self, attributes: Mapping[str, Any]) -> None:
        self.span.set_attributes({k: v for k, v in attributes.items() if v is not None})


def _fail(span: Span, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    code = getattr(error, "code", None) or type(error).__qualname__
    span.set_attribute("error.type", str(code))
    span.set_status(Status(StatusCode.ERROR, str(error)[:200]))


def tracer_from_environment(environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """A tracer that exports to where the standard variables say; None where they say nothing.

    `OTEL_TRACES_EXPORTER` may be `otlp` (the default where an endpoint is named), `console` or
    `none`; everything else of `OTEL_*` is read by the SDK itself.
    """
    kind = environment.get("OTEL_TRACES_EXPORTER", "otlp")
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or kind == "none"
    if is_off or not any(environment.get(name) for name in _SETTINGS):
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(kind)
    except ModuleNotFoundError as error:
        _log.warning(
            "OTEL_* asks for traces, but %s is not installed: pip install 'baleen[otel]'",
            error.name,
        )
        return None
    name = environment.get("OTEL_SERVICE_NAME", "baleen")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider.get_tracer("baleen.server")


def _exporter(kind: str) -> Any:
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
