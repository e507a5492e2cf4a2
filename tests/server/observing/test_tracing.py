"""Spans of a request, as an exporter gets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from baleen.server.base import Generation
from baleen.server.observing.tracing import tracer_from_environment
from baleen.server.upstreams.scripted import Line

from ..conftest import ASKED, CALL, WEATHER, Serve


class Recorder:
    """A tracer, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter, self._provider = InMemorySpanExporter(), TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self._provider.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def close(self) -> None:
        self._provider.shutdown()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


def parent_of(recorder: Recorder, span: ReadableSpan) -> str | None:
    assert span.context is not None
    found = [s for s in recorder.spans if s.context and span.parent
             and s.context.span_id == span.parent.span_id]  # fmt: skip
    return found[0].name if found else None


async def test_a_request_with_calls_is_a_tree_of_spans(serve: Serve, recorder: Recorder) -> None:
    served = await serve(CALL, tracer=recorder.tracer, model_name="v4")
    await served.chat(tools=[WEATHER], seed=7, model="mine")
    (root,) = recorder.named("chat v4")
    tree = {span.name: parent_of(recorder, span) for span in recorder.spans}
    assert tree == {
        "chat v4": None,
        "encode": "chat v4",
        "upstream": "chat v4",
        "first_token": "upstream",
        "tool_call get_weather": "chat v4",
    }
    assert len(recorder.named("tool_call get_weather")) == 2
    call = recorder.named("tool_call get_weather")[0]
    assert call.attributes is not None
    assert call.attributes["gen_ai.tool.name"] == "get_weather"
    assert call.attributes["baleen.call.status"] == "clean"
    assert root.attributes is not None
    assert root.attributes["gen_ai.request.model"] == "mine"
    assert root.attributes["gen_ai.request.seed"] == 7
    assert root.attributes["gen_ai.response.finish_reasons"] == ("tool_calls",)
    assert root.attributes["gen_ai.usage.output_tokens"] == served.upstream.num_sampled
    assert root.attributes["gen_ai.usage.input_tokens"] == len(served.upstream.asked[0].ids)


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/messages", {"messages": ASKED, "max_tokens": 50}, "chat"),
        ("/v1/responses", {"input": "Hello", "stream": True}, "chat"),
        ("/v1/completions", {"prompt": "Hello"}, "text_completion"),
    ],
)
async def test_every_door_that_generates_is_traced(
    serve: Serve, recorder: Recorder, path: str, body: Any, operation: str
) -> None:
    served = await serve("Thought.</think>Hello.", tracer=recorder.tracer, model_name="v4")
    assert (await served.post(path, body)).status_code == 200
    (root,) = recorder.named(f"{operation} v4")
    assert root.attributes is not None
    assert root.attributes["gen_ai.usage.output_tokens"] == served.upstream.num_sampled
    assert (await served.http.get("/v1/models")).status_code == 200
    assert (await served.post("/tokenize", {"prompt": "x"})).status_code == 200
    assert len([span for span in recorder.spans if span.parent is None]) == 1


async def test_a_request_goes_on_with_its_callers_trace(serve: Serve, recorder: Recorder) -> None:
    served = await serve("Thought.</think>Hello.", tracer=recorder.tracer)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    header = f"00-{trace}-00f067aa0ba902b7-01"
    await served.post("/v1/chat/completions", {"messages": ASKED}, Traceparent=header)
    assert {f"{span.context.trace_id:032x}" for span in recorder.spans if span.context} == {trace}


async def test_failures_and_retries_are_on_their_spans(serve: Serve, recorder: Recorder) -> None:
    def script(asked: Generation) -> Line:
        return Line("Thought.</think>Hello.", breaks_after=2 if len(recorder.spans) < 4 else None)

    served = await serve(script, tracer=recorder.tracer)
    assert (await served.post("/v1/chat/completions", {"messages": []})).status_code == 400
    await served.chat()
    stretches = recorder.named("upstream")
    assert [span.status.is_ok for span in stretches] == [False, True]
    assert [dict(span.attributes or {})["baleen.sampled_before"] for span in stretches] == [0, 2]
    refused, answered = (span for span in recorder.spans if span.parent is None)
    assert dict(refused.attributes or {})["error.type"]
    assert answered.status.is_ok


async def test_names_are_those_of_the_conventions_and_nothing_said_is_in_them(
    serve: Serve, recorder: Recorder
) -> None:
    served = await serve(CALL, tracer=recorder.tracer)
    await served.chat(tools=[WEATHER])
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    for span in recorder.spans:
        for name, value in (span.attributes or {}).items():
            assert not name.startswith("gen_ai.") or name in known, name
            assert "Köln" not in str(value)


def test_without_a_word_in_the_environment_nothing_is_traced_or_imported() -> None:
    assert tracer_from_environment({}) is None
    assert tracer_from_environment({"OTEL_TRACES_EXPORTER": "none"}) is None
    off = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}
    assert tracer_from_environment(off) is None
    code = (
        "import sys, baleen.server.gateway, baleen.server.http;"
        "from baleen.server.observing import tracing; tracing.tracer_from_environment({});"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_console_exporter_needs_no_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    tracer = tracer_from_environment({"OTEL_TRACES_EXPORTER": "console"})
    assert tracer is not None
    tracer.start_span("alone").end()
    tracer.span_processor.force_flush()  # type: ignore[attr-defined]
    tracer.span_processor.shutdown()  # type: ignore[attr-defined]
    assert '"name": "alone"' in capsys.readouterr().err
