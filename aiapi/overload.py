"""Load shedding: a worker that falls behind refuses new model calls at once, so that it answers the others in time.

Without it, all requests advance together: the more arrive, the longer each of them takes, without bound. Here calls
wait for their start in the order of arrival, and one is started in each round of the event loop, in which it also goes
on with all whose sockets are ready. So few are under way, and the worker's delay is the number of calls that wait times
the interval of starts. While that is above SHED_DELAY, new calls are refused. A call that waits for a provider, a store
or its client has started: that is no delay.

At five times the sustained rate, four of five calls are refused, so a refusal must cost little. One of the received
bytes costs a third of one after gunicorn's parser. It is for bytes that are one whole request beyond doubt; gunicorn
parses all others, so that nobody can dispute where the next request begins. Both are before authentication, and leave
no record.
"""

from __future__ import annotations

import re
from collections import deque
from functools import cached_property, lru_cache
from time import monotonic, monotonic_ns
from typing import Any
from urllib.parse import unquote

import gevent
import structlog
from django.conf import settings
from gevent.hub import Waiter

from aiapi.errors import MODEL_PATHS, native_error_body
from core.errors import ServiceBusy
from core.json import to_json
from core.telemetry.metrics import requests_shed
from core.telemetry.trace import begin_trace
from core.times import http_date
from inference.api.errors import anthropic_error_body, is_anthropic_path, is_openai_path, openai_error_body

#: How many starts the mean of their intervals reflects, and the seconds of one that count: a pause of the machine tells
#: nothing about the next.
SMOOTHED, LONGEST_INTERVAL = 32, 0.1
#: Least seconds between two log lines about shedding.
LOG_SECONDS = 60.0
#: The first line of a call, as clients write it.
CALL = re.compile(rb"POST (/chat|/summarize|/v1/[a-z_/]{1,40})(?:\?beta=true)? HTTP/1\.1\r\n")
LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]{1,5})(?:\r\n|\Z)")
KEPT = re.compile(rb"\r\nconnection: keep-alive(?:\r\n|\Z)")
LABEL = re.compile(rb"(?i)\r\nx-request-id: ([!-~]{1,64})(?:\r\n|\Z)")
#: Names and bytes that make a header unusual, anywhere in it: framing other than by a length, an origin (its response
#: may need headers of CORS), a header over two lines.
UNUSUAL = (b"transfer-encoding", b"trailer", b"expect", b"upgrade", b"origin", b"\r\n ", b"\r\n\t", b"\0")
LABEL_PLACE = "#LABEL#"

log = structlog.get_logger(__name__)


class Overload:
    """Starts this worker's calls in the order in which they arrived, and refuses further ones while that takes long."""

    def __init__(self) -> None:
        self._waiting: deque[Waiter[None]] = deque()
        self._started_at = 0.0
        #: The mean seconds from one start to the next since calls began to wait, and of how many it is.
        self._interval, self._intervals = 0.0, 0
        self._logged_at = -LOG_SECONDS

    @cached_property  # of the worker's own loop: the master makes this object
    def _timer(self) -> Any:
        """Fires in the next round of the event loop, behind its look at the sockets."""
        return gevent.get_hub().loop.timer(0)

    @property
    def is_on(self) -> bool:
        """Whether calls are refused: a further one would have to wait for more than SHED_DELAY seconds."""
        return bool(self._waiting and len(self._waiting) * self._interval > settings.SHED_DELAY > 0)

    def await_start(self) -> None:
        """Wait for the turn of a call. The first of a round starts at once."""
        if self._timer.active:
            waiter: Waiter[None] = Waiter()
            self._waiting.append(waiter)
            waiter.get()
        else:
            self._begin_round()

    def _begin_round(self) -> None:
        self._started_at = monotonic()
        self._timer.start(self._round)

    def _round(self) -> None:
        """Start one call, if one waits."""
        self._timer.stop()
        if not self._waiting:
            self._interval, self._intervals = 0.0, 0
            return
        self._intervals = min(self._intervals + 1, SMOOTHED)
        spent = min(monotonic() - self._started_at, LONGEST_INTERVAL)
        self._interval += (spent - self._interval) / self._intervals
        self._begin_round()
        self._waiting.popleft().switch(None)  # runs until the call waits for something

    def refuse_bytes(self, data: bytes) -> bytes | None:
        """Return the response to what was received between two requests, if it is one whole call to be refused."""
        if not self.is_on:
            return None
        call = CALL.match(data)
        head, separator, body = data.partition(b"\r\n\r\n")
        if call is None or not separator or _only_length(head.lower()) != len(body):
            return None
        label = LABEL.search(head)
        self._count()
        return refusal(call[1].decode(), label and label[1].decode())

    def refuse(self, request: Any) -> bytes | None:
        """Return the response to a call (gunicorn's request) that is to be refused."""
        if not self.is_on:
            return None
        headers = dict(request.headers)
        if "EXPECT" in headers:  # after a refusal, the client might send its body or not
            return None
        self._count()
        origin = headers.get("ORIGIN", "")
        return refusal(request.path, headers.get("X-REQUEST-ID"), origin, closes=request.should_close())

    def _count(self) -> None:
        requests_shed.inc()
        if monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = monotonic()
            log.warning("overloaded", shed_delay=settings.SHED_DELAY)


def is_call(request: Any) -> bool:
    """Return whether a request (gunicorn's) is a model call."""
    return bool(request.method == "POST" and unquote(request.path).startswith(MODEL_PATHS))


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
    label = begin_trace(sent_label).label if sent_label else f"shed-{monotonic_ns():x}"
    content = _content(path if path.startswith("/v1/") else "").replace(LABEL_PLACE, label)
    cors = ""
    if settings.CORS_ALLOWED_ORIGINS:
        cors = "Vary: origin\r\n"
        if origin in settings.CORS_ALLOWED_ORIGINS:
            cors += f"Access-Control-Allow-Origin: {origin}\r\n"
            cors += f"Access-Control-Expose-Headers: {', '.join(settings.CORS_EXPOSE_HEADERS)}\r\n"
    connection = "close" if closes else "keep-alive"
    anthropic = f"request-id: {label}\r\n" if is_anthropic_path(path) else ""
    return (
        f"HTTP/1.1 503 Service Unavailable\r\nDate: {http_date()}\r\nConnection: {connection}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        "Retry-After: 1\r\nCache-Control: no-store\r\n"
        f"X-Request-ID: {label}\r\nX-Process-Time: 0.000\r\n{anthropic}{cors}\r\n{content}"
    ).encode()


@lru_cache
def _content(path: str) -> str:
    error = ServiceBusy()
    if is_anthropic_path(path):
        body = anthropic_error_body(error, LABEL_PLACE)
    else:
        body = openai_error_body(error) if is_openai_path(path) else native_error_body(error, LABEL_PLACE)
    return to_json(body).decode()
