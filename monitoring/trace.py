"""The clock and the names of one request, from the middleware to the record."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uuid6

#: What is kept of an inbound X-Request-ID as a label (WIRE.md, Headers).
LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


@dataclass(slots=True)
class Trace:
    """One request's id (UUIDv7, made here), label (the caller's X-Request-ID, or the id), and time by stage."""

    id: uuid.UUID
    label: str
    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    is_recorded: bool = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage, in milliseconds."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + (time.perf_counter() - began) * 1000

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request came in."""
        return (time.perf_counter() - self.started) * 1000


def begin_trace(sent_label: str | None) -> Trace:
    """Start a trace, with the caller's label where it is well formed."""
    request_id = uuid6.uuid7()
    label = sent_label if sent_label and LABEL.match(sent_label) else str(request_id)
    return Trace(id=request_id, label=label)
