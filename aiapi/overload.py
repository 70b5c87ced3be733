"""Load shedding: a worker that falls behind refuses new model calls at once, so that it answers the others in time.

Without it, all requests advance together: the more arrive, the longer each of them takes, without bound.

The measure is the worker's delay: the time that a callback waits in the queue of the event loop, which each request
passes some six times. Waiting for a provider, a store or a client is no delay. A marker in the queue measures it, sent
with a request while none is under way, so that an idle worker has no work. The worker is overloaded once two markers
in succession took longer than SHED_DELAY: one alone is an expensive request. After a marker in time, one late marker is
enough again, until a second one was in time: else the worker would admit too much in each respite.

At five times the sustained rate, four of five requests are refused, so a refusal must cost little. Beside 1.7 ms of
CPU for a cache hit, a refusal after gunicorn's parser took 0.28 ms, and one of the received bytes 0.15 ms. The latter
is for bytes that are one whole request beyond doubt; gunicorn parses all others, so that nobody can dispute where the
next request begins. Both are before authentication, and leave no record. bench/overload.py measures what is answered.
"""

from __future__ import annotations

import re
from functools import cache
from time import monotonic
from typing import Any

import gevent
import structlog
from django.conf import settings
from gunicorn.util import http_date

from aiapi.errors import MODEL_PATHS, native_error_body
from core.errors import ServiceBusy
from core.json import to_json
from core.telemetry.metrics import requests_shed
from core.telemetry.trace import begin_trace
from inference.api.errors import is_openai_path, openai_error_body

#: Late markers in succession that are an overload.
SUSTAINED = 2
#: Least seconds between two log lines about shedding.
LOG_SECONDS = 60.0
#: The first line of a call, as clients write it.
CALL = re.compile(rb"POST (/chat|/summarize|/v1/[a-z/]{1,40}) HTTP/1\.1\r\n")
LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]{1,5})(?:\r\n|\Z)")
KEPT = re.compile(rb"\r\nconnection: keep-alive(?:\r\n|\Z)")
LABEL = re.compile(rb"(?i)\r\nx-request-id: ([!-~]{1,64})(?:\r\n|\Z)")
#: Names and bytes that make a header unusual, anywhere in it: framing other than by a length, an origin (its response
#: may need headers of CORS), a header over two lines.
UNUSUAL = (b"transfer-encoding", b"trailer", b"expect", b"upgrade", b"origin", b"\r\n ", b"\r\n\t", b"\0")
LABEL_PLACE = "#LABEL#"

log = structlog.get_logger(__name__)


class Overload:
    """The delay of this worker, and what it refuses meanwhile."""

    def __init__(self) -> None:
        self._sent_at: float | None = None
        self._late = 0
        self._logged_at = -LOG_SECONDS

    def refuse_bytes(self, data: bytes) -> bytes | None:
        """Return the response to what was received between two requests, if it is one whole call to be refused."""
        call = CALL.match(data)
        if call is None or not self._is_overloaded():
            return None
        head, separator, body = data.partition(b"\r\n\r\n")
        length = _only_length(head.lower())
        if not separator or length != len(body):
            return None
        label = LABEL.search(head)
        self._count()
        return refusal(call[1].decode(), label and label[1].decode())

    def refuse(self, request: Any) -> bytes | None:
        """Return the response to a request (gunicorn's), if it is a call to be refused."""
        is_call = request.method == "POST" and request.path.startswith(MODEL_PATHS)
        if not is_call or not self._is_overloaded():
            return None
        headers = dict(request.headers)
        if "EXPECT" in headers:  # after a refusal, the client might send its body or not
            return None
        self._count()
        origin = headers.get("ORIGIN", "")
        return refusal(request.path, headers.get("X-REQUEST-ID"), origin, closes=request.should_close())

    def _is_overloaded(self) -> bool:
        if not settings.SHED_DELAY:
            return False
        now = monotonic()
        if self._sent_at is None:
            self._send(now)
        return self._late + self._is_late(now) >= SUSTAINED

    def _is_late(self, now: float) -> bool:
        return self._sent_at is not None and now - self._sent_at > settings.SHED_DELAY

    def _send(self, now: float) -> None:
        self._sent_at = now
        gevent.get_hub().loop.run_callback(self._pass)

    def _pass(self) -> None:
        """Take the time of the marker, whose turn it is, and send another one until the delay is over."""
        now = monotonic()
        self._late = min(self._late + 1, SUSTAINED) if self._is_late(now) else max(self._late - 1, 0)
        self._sent_at = None
        if self._late:
            self._send(now)

    def _count(self) -> None:
        requests_shed.inc()
        if monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = monotonic()
            log.warning("overloaded", shed_delay=settings.SHED_DELAY)


def _only_length(head: bytes) -> int | None:
    """Return the body's length as a header (in lower case) states it; None if anything else may say where it ends."""
    length = LENGTH.search(head)
    lines, connections = head.count(b"\r\n"), head.count(b"connection")
    if (
        length is None
        or head.count(b"content-length") > 1
        or not lines == head.count(b"\n") == head.count(b"\r")
        or not head.isascii()
        or (connections and (connections > 1 or KEPT.search(head) is None))
        or any(each in head for each in UNUSUAL)
    ):
        return None
    return int(length[1])


def refusal(path: str, sent_label: str | None, origin: str = "", *, closes: bool = False) -> bytes:
    """Return the whole response to a call that is refused; `origin`: of the page that calls, for CORS."""
    label = begin_trace(sent_label).label
    content = _content(is_openai=is_openai_path(path)).replace(LABEL_PLACE, label)
    cors = ""
    if settings.CORS_ALLOWED_ORIGINS:
        cors = "Vary: origin\r\n"
        if origin in settings.CORS_ALLOWED_ORIGINS:
            cors += f"Access-Control-Allow-Origin: {origin}\r\n"
            cors += f"Access-Control-Expose-Headers: {', '.join(settings.CORS_EXPOSE_HEADERS)}\r\n"
    connection = "close" if closes else "keep-alive"
    return (
        f"HTTP/1.1 503 Service Unavailable\r\nDate: {http_date()}\r\nConnection: {connection}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        "Retry-After: 1\r\nCache-Control: no-store\r\n"
        f"X-Request-ID: {label}\r\nX-Process-Time: 0.000\r\n{cors}\r\n{content}"
    ).encode()


@cache
def _content(*, is_openai: bool) -> str:
    error = ServiceBusy()
    body = openai_error_body(error) if is_openai else native_error_body(error, LABEL_PLACE)
    return to_json(body).decode()
