"""The ids, timings and trace headers of a request, from the middleware to the usage record."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from core.redaction import without_keys
from core.times import new_id

#: X-Request-ID values that are accepted as the request's label.
LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
#: W3C Trace Context: version, trace id, parent id, flags; versions after 00 may append further fields.
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:(?<!\A00.{53})-[!-~]{0,200})?\Z"
)
TRACESTATE = re.compile(r"[ -~]{1,512}\Z")


class Spans(Protocol):
    """The spans of one request, for OpenTelemetry (core.telemetry.otel)."""

    def enter(self, stage: str) -> Callable[[], None]:
        """Begin the span of a stage, and return the function that ends it."""

    def attempt(self, provider: str, deployment: str) -> Callable[[str], None]:
        """Begin the span of a call to a provider, and return the function that ends it with its outcome."""

    def describe(self, record: Mapping[str, Any]) -> None:
        """Add the fields of the request's record to its span."""

    def answer(self, route: str, status: int) -> None:
        """Set the route and the response status."""

    def end(self) -> None:
        """End the request's own span."""


@dataclass(slots=True)
class Trace:
    """A request's id (UUIDv7), label (the caller's X-Request-ID, or the id), and milliseconds by stage.

    `passed_on` has the W3C trace headers for calls to providers. `spans` is None if tracing is off.
    """

    id: uuid.UUID
    label: str
    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    is_recorded: bool = False
    passed_on: Mapping[str, str] = field(default_factory=dict)
    spans: Spans | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's duration to a stage."""
        leave = self.spans.enter(name) if self.spans is not None else None
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + (time.perf_counter() - began) * 1000
            if leave is not None:
                leave()

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
