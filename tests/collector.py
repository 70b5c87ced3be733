"""A collector of OpenTelemetry traces on a real socket: it keeps the spans that it is sent (OTLP over HTTP)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A span as it was sent; ids in hexadecimal, times in nanoseconds."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    failed: bool
    attributes: dict[str, Any]


@dataclass
class Collector:
    """What has come in: bodies as they were, their paths and headers, the resource's attributes."""

    url: str
    bodies: list[bytes] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def resource(self) -> dict[str, Any]:
        """Return the attributes of what sent the first spans."""
        return _values(self._sent()[0].resource.attributes)

    @property
    def spans(self) -> list[Span]:
        """Return all spans, by the time at which they began."""
        sent = [span for each in self._sent() for scope in each.scope_spans for span in scope.spans]
        return sorted(map(_parsed, sent), key=lambda span: span.began)

    def _sent(self) -> list[Any]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [spans for request in requests for spans in request.resource_spans]


def _parsed(span: Any) -> Span:
    trace, own, parent = (each.hex() for each in (span.trace_id, span.span_id, span.parent_span_id))
    times = span.start_time_unix_nano, span.end_time_unix_nano
    has_failed = span.status.code == span.status.STATUS_CODE_ERROR
    return Span(span.name, span.kind, trace, own, parent, *times, has_failed, _values(span.attributes))


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port of 127.0.0.1."""
    collector = Collector("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            collector.paths.add(self.path)
            collector.headers.append(dict(self.headers.items()))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  (the base class's name)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
