"""OpenTelemetry's traces, switched on by its standard environment variables; while they are off, it isn't imported.

A request is a server span, its stages are spans in that, and each call to a provider is a client span, which the
provider is told as the parent of its own. What they say is what a log may say: route, status, names and numbers; no
key, prompt or answer.
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

#: Seconds that a process gives its last spans on their way to the collector.
LAST_SECONDS = 2.0


class _Process:
    """What this process exports with: made at its first request, because a fork takes no threads along."""

    exporting: Exporting | None = None
    pid = 0
    lock = threading.Lock()


def begin_spans(trace: Trace, method: str) -> None:
    """Begin the span of a request, where traces are on."""
    if _are_on():
        trace.spans = _exporting().begin(trace, method)


def begin_attempt(provider: str, deployment: str) -> Callable[[str], None] | None:
    """Begin the span of a call to a provider, and return what ends it; None where traces are off."""
    trace = current_trace.get()
    if trace is None or trace.spans is None:
        return None
    return trace.spans.attempt(provider, deployment)


def stop_exporting() -> None:
    """Send what waits, in LAST_SECONDS: the process is about to end."""
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
