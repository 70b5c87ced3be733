"""OpenTelemetry tracing, switched on by its standard environment variables. The SDK is imported only if it is on.

A request is a server span with a child span for each stage. Each call to a provider is a client span, whose id goes to
the provider as the parent of its spans. Like log lines, spans contain route, status, names and numbers, and never a
key, a prompt or an answer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from django.conf import settings

from core.telemetry.trace import Trace, current_trace

if TYPE_CHECKING:
    from core.telemetry.otel import Exporting

#: Seconds to wait for the export of the last spans when a process ends.
LAST_SECONDS = 2.0


class _Process:
    """The exporter of this process, made at its first request because forked processes inherit no threads."""

    exporting: Exporting | None = None
    pid = 0
    lock = threading.Lock()


def begin_spans(trace: Trace, method: str) -> None:
    """Begin the span of a request if tracing is on."""
    if _are_on():
        trace.spans = _exporting().begin(trace, method)


def begin_attempt(provider: str, deployment: str) -> Callable[[str], None] | None:
    """Begin the span of a call to a provider, and return the function that ends it; None if tracing is off."""
    trace = current_trace.get()
    if trace is None or trace.spans is None:
        return None
    return trace.spans.attempt(provider, deployment)


def stop_exporting() -> None:
    """Export the waiting spans before the process ends, in at most LAST_SECONDS."""
    exporting, _Process.exporting = _Process.exporting, None
    if exporting is not None and _Process.pid == os.getpid():
        last = threading.Thread(target=exporting.stop, name="last-spans", daemon=True)
        last.start()
        last.join(LAST_SECONDS)


def _are_on() -> bool:
    if not (settings.OTEL_EXPORTER_OTLP_ENDPOINT or settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT):
        return False
    return settings.OTEL_TRACES_EXPORTER == "otlp" and not settings.OTEL_SDK_DISABLED


def _exporting() -> Exporting:
    with _Process.lock:
        if _Process.exporting is None or _Process.pid != os.getpid():
            from core.telemetry.otel import Exporting

            _Process.exporting, _Process.pid = Exporting(), os.getpid()
        return _Process.exporting
