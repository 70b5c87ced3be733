"""The ids, timings, trace headers and spans of a request, from the middleware to the usage record.

OpenTelemetry is switched on by its standard environment variables; its SDK is imported only then. A request is a server
span with a child span for each stage. Each call to a provider is a client span, whose id goes to the provider as the
parent of its spans. Like log lines, spans contain route, status, names and numbers, and never a key, a prompt or an
answer.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.conf import settings

from core.background import PerProcess
from core.redaction import without_keys
from core.times import new_id

if TYPE_CHECKING:
    from core.telemetry.otel import Exporting, RequestSpans

#: X-Request-ID values that are accepted as the request's label.
LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
#: W3C Trace Context: version, trace id, parent id, flags; versions after 00 may append further fields.
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:(?<!\A00.{53})-[!-~]{0,200})?\Z"
)
TRACESTATE = re.compile(r"[ -~]{1,512}\Z")


class Stage:
    """One block of a stage."""

    __slots__ = ("_began", "_leave", "_name", "_trace")

    def __init__(self, trace: Trace, name: str) -> None:
        self._trace, self._name = trace, name

    def __enter__(self) -> None:
        spans = self._trace.spans
        self._leave = spans.enter(self._name) if spans is not None else None
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        stages = self._trace.stages
        stages[self._name] = stages.get(self._name, 0.0) + (time.perf_counter() - self._began) * 1000
        if self._leave is not None:
            self._leave()


@dataclass(slots=True)
class Trace:
    """A request's id (UUIDv7), label (the caller's X-Request-ID, or the id), and milliseconds by stage.

    `passed_on` has the W3C trace headers for calls to providers. `spans` is None if tracing is off.
    """

    id: uuid.UUID
    label: str
    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    passed_on: Mapping[str, str] = field(default_factory=dict)
    spans: RequestSpans | None = None

    def stage(self, name: str) -> Stage:
        """Return a context manager that adds the block's duration to a stage."""
        return Stage(self, name)

    @property
    def stages_text(self) -> str:
        """Format the stages' times for the usage record: `name=1.2 name=3.4`, in milliseconds."""
        return " ".join(f"{name}={spent:.1f}" for name, spent in self.stages.items())

    @property
    def elapsed_ms(self) -> float:
        """Return the milliseconds since the request arrived."""
        return (time.perf_counter() - self.started) * 1000


#: The trace of the current request, by thread or greenlet.
current_trace: ContextVar[Trace | None] = ContextVar("current_trace", default=None)


def begin_trace(sent_label: str | None, *, traceparent: str | None = None, tracestate: str | None = None) -> Trace:
    """Return a new trace, with the caller's label and W3C trace headers if they are well formed."""
    request_id = new_id()
    label = sent_label if sent_label and _is_label(sent_label) else str(request_id)
    trace = Trace(id=request_id, label=label)
    if traceparent and TRACEPARENT.match(traceparent):
        state = {"tracestate": tracestate} if tracestate and TRACESTATE.match(tracestate) else {}
        trace.passed_on = {"traceparent": traceparent, **state}
    return trace


def _is_label(text: str) -> bool:
    """Return whether a text is a valid label. Labels are logged and shown, so they must not contain a key."""
    return LABEL.match(text) is not None and without_keys(text) == text


def passed_on() -> Mapping[str, str]:
    """Return the trace headers for calls to providers in the current request; empty outside of a request."""
    trace = current_trace.get()
    return trace.passed_on if trace is not None else {}


#: Seconds to wait for the export of the last spans when a process ends.
LAST_SECONDS = 2.0


def _build_exporting() -> Exporting:
    from core.telemetry.otel import Exporting

    return Exporting()


_exporting = PerProcess(_build_exporting)


def begin_spans(trace: Trace, method: str) -> None:
    """Begin the span of a request if tracing is on."""
    if _are_on():
        trace.spans = _exporting.get().begin(trace, method)


def begin_attempt_span(provider: str, deployment: str) -> Callable[[str], None] | None:
    """Begin the span of a call to a provider, and return the function that ends it; None if tracing is off."""
    trace = current_trace.get()
    if trace is None or trace.spans is None:
        return None
    return trace.spans.attempt(provider, deployment)


def stop_exporting() -> None:
    """Export the waiting spans before the process ends, in at most LAST_SECONDS."""
    exporting = _exporting.drop()
    if exporting is not None:
        last = threading.Thread(target=exporting.stop, name="last-spans", daemon=True)
        last.start()
        last.join(LAST_SECONDS)


def _are_on() -> bool:
    if not (settings.OTEL_EXPORTER_OTLP_ENDPOINT or settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT):
        return False
    return settings.OTEL_TRACES_EXPORTER == "otlp" and not settings.OTEL_SDK_DISABLED
