"""The clock and the names of one request, from the middleware to the record."""

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

#: What is kept of an inbound X-Request-ID as a label (WIRE.md, Headers).
LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
#: W3C Trace Context: version, trace id, parent id, flags; a version after 00 may have more behind them.
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:(?<!\A00.{53})-[!-~]{0,200})?\Z"
)
TRACESTATE = re.compile(r"[ -~]{1,512}\Z")


class Spans(Protocol):
    """The spans of one request, for OpenTelemetry (core.telemetry.otel)."""

    def enter(self, stage: str) -> Callable[[], None]:
        """Begin the span of a stage, and return what ends it."""

    def attempt(self, provider: str, deployment: str) -> Callable[[str], None]:
        """Begin the span of a call to a provider, and return what ends it, with its outcome."""

    def describe(self, record: Mapping[str, Any]) -> None:
        """Say what became of the request, by its record."""

    def answer(self, route: str, status: int) -> None:
        """Name the route that answered, and its status."""

    def end(self) -> None:
        """End the request's own span."""


@dataclass(slots=True)
class Trace:
    """One request's id (UUIDv7, made here), label (the caller's X-Request-ID, or the id), and time by stage.

    `passed_on` holds the headers that tell a provider of the W3C trace which the call belongs to, and `spans` what
    OpenTelemetry gets to see; None where it gets nothing.
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
        """Add the time spent inside to a stage, in milliseconds."""
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
        """Write the stages' times as a record keeps them."""
        return " ".join(f"{name}={spent:.1f}" for name, spent in self.stages.items())

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request came in."""
        return (time.perf_counter() - self.started) * 1000


#: The trace of the request that this thread or greenlet works for.
current_trace: ContextVar[Trace | None] = ContextVar("current_trace", default=None)


def begin_trace(sent_label: str | None, *, traceparent: str | None = None, tracestate: str | None = None) -> Trace:
    """Start a trace, with the caller's label and W3C trace where they are well formed."""
    request_id = new_id()
    label = sent_label if sent_label and _is_label(sent_label) else str(request_id)
    trace = Trace(id=request_id, label=label)
    if traceparent and TRACEPARENT.match(traceparent):
        state = {"tracestate": tracestate} if tracestate and TRACESTATE.match(tracestate) else {}
        trace.passed_on = {"traceparent": traceparent, **state}
    return trace


def _is_label(text: str) -> bool:
    """Say whether a text may be a label: it is logged, kept and shown, so one that holds a key may not."""
    return LABEL.match(text) is not None and without_keys(text) == text


def passed_on() -> Mapping[str, str]:
    """Return the headers for a provider that is called for the present request; none outside of one."""
    trace = current_trace.get()
    return trace.passed_on if trace is not None else {}
