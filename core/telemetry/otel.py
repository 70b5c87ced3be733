"""OpenTelemetry spans of requests and their export (OTLP over HTTP). Imported only if tracing is on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus

from django.conf import settings
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from core.telemetry.trace import Trace

_w3c = TraceContextTextMapPropagator()


class Exporting:
    """The tracer of a process. The SDK itself reads the other OTEL_ variables: sampler, headers, batches, resource."""

    def __init__(self) -> None:
        about = {"service.name": "ai-api", "service.version": settings.VERSION, "host.name": socket.gethostname()}
        resource = Resource(about).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(_endpoint())))
        self._tracer = self._provider.get_tracer("aiapi", settings.VERSION)

    def begin(self, trace: Trace, method: str) -> RequestSpans:
        """Begin the span of a request, as a child of the span in its headers, if any."""
        return RequestSpans(self._tracer, trace, method)

    def stop(self) -> None:
        """Export the waiting spans and stop."""
        self._provider.shutdown()


class RequestSpans:
    """The span of a request and those within it."""

    def __init__(self, tracer: Tracer, trace: Trace, method: str) -> None:
        self._tracer = tracer
        self._trace = trace
        self._method = method
        attributes = {
            "http.request.method": method,
            "aiapi.request_id": trace.label,
            "aiapi.record_id": str(trace.id),
        }
        parent = _w3c.extract(trace.passed_on, Context())
        self._span = tracer.start_span(method, parent, SpanKind.SERVER, attributes)
        self._inside = set_span_in_context(self._span, Context())
        self._pass_on(self._inside)

    def enter(self, stage: str) -> Callable[[], None]:
        """Begin the span of a stage, and return the function that ends it."""
        outside = self._inside
        span = self._tracer.start_span(stage, outside)
        self._inside = set_span_in_context(span, Context())

        def leave() -> None:
            span.end()
            self._inside = outside

        return leave

    def attempt(self, provider: str, deployment: str) -> Callable[[str], None]:
        """Begin the span of a call to a provider, put it into the call's headers, and return what ends it."""
        attributes = {"aiapi.provider": provider, "aiapi.deployment": deployment}
        span = self._tracer.start_span(f"call {provider}", self._inside, SpanKind.CLIENT, attributes)
        self._pass_on(set_span_in_context(span, Context()))

        def finish(outcome: str) -> None:
            if outcome != "ok":
                span.set_attribute("error.type", outcome)
                span.set_status(Status(StatusCode.ERROR))
            span.end()

        return finish

    def describe(self, attributes: Mapping[str, str | int]) -> None:
        """Add attributes to the request's span, unless it has ended."""
        if self._span.is_recording():
            self._span.set_attributes(attributes)

    def answer(self, route: str, status: int) -> None:
        """Set the route and the response status."""
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        """End the request's own span."""
        self._span.end()

    def _pass_on(self, context: Context) -> None:
        headers: dict[str, str] = {}
        _w3c.inject(headers, context)
        self._trace.passed_on = headers


def _endpoint() -> str:
    base: str = settings.OTEL_EXPORTER_OTLP_ENDPOINT
    return settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or f"{base.rstrip('/')}/v1/traces"
