"""What a provider can do wrong: every fault by name, when it strikes, and the error bodies that it sends."""

import json
import random
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

LEAK_MARKER = "provider-internal-detail"
"""Stands in every error that the fake sends, so that a test can prove that no text of the provider's own gets out."""

FAULTS: dict[str, str] = {
    "http_400": "400 with OpenAI's error body, code context_length_exceeded, param messages; bills nothing",
    "http_401": "401 invalid_api_key; bills nothing",
    "http_402": "402 payment required; bills nothing",
    "http_403": "403 unsupported_country_region_territory; bills nothing",
    "http_404": "404 model_not_found; bills nothing",
    "http_408": "408 request timeout; bills nothing",
    "http_422": "422 with param temperature; bills nothing",
    "http_429": "429 rate_limit_exceeded with Retry-After (setting retry_after); bills nothing",
    "no_credit": "429 insufficient_quota, as OpenAI says that the credit is used up; bills nothing",
    "http_500": "500 server_error; bills nothing",
    "http_503": "503 overloaded; bills nothing",
    "http_504": "504 from a gateway that waited no longer; bills the whole answer",
    "refuse": "the listening socket is closed until listen() or reset(); bills nothing",
    "reset": "the connection is reset before any byte; bills nothing",
    "cut": "the connection ends half-way through the answer; bills the tokens sent of a stream, all of a plain answer",
    "hang": "no byte is ever sent; bills nothing",
    "stall": "half of the answer, then silence on an open connection; billed as cut",
    "slow": "the answer trickles, one piece every slow_interval_ms; billed as sent",
    "broken_json": "200 with a body (or a streamed event) that is no JSON; bills the whole answer",
    "empty_choices": "a good answer without choices; bills the prompt",
    "content_filter": "half of an answer, finish_reason content_filter; bills that half",
    "no_usage": "a good answer that does not tell its usage; bills the whole answer",
    "error_event": "an error event half-way through a stream, billed as sent; 200 with an error body on plain calls, "
    "which bills nothing",
    "error_first": "200 with an error body, or a stream whose first event is an error; bills nothing",
    "error_usage": "as error_event, and the error tells the usage; bills half of plain calls too",
    "wrong_type": "200 with an HTML page, as from a proxy in between; bills nothing",
}


class HttpError(NamedTuple):
    """An error answer: its status, and the four fields of OpenAI's error body."""

    status: int
    kind: str
    code: str | None
    param: str | None
    message: str

    def fields(self) -> dict[str, str | None]:
        """Return OpenAI's error object."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        """Return OpenAI's error body as JSON."""
        return json.dumps({"error": self.fields()}).encode()


def _fault(status: int, kind: str, code: str | None = None, param: str | None = None) -> HttpError:
    text = f"The provider failed with {status} ({LEAK_MARKER})."
    if param:  # such a message is passed on without what is the provider's own
        text = f"Wrong {param}. See https://{LEAK_MARKER}.example/{status}, {LEAK_MARKER}:8000, or sk-{LEAK_MARKER}."
    return HttpError(status, kind, code, param, text)


HTTP_FAULTS: dict[str, HttpError] = {
    "http_400": _fault(400, "invalid_request_error", "context_length_exceeded", "messages"),
    "http_401": _fault(401, "invalid_request_error", "invalid_api_key"),
    "http_402": _fault(402, "payment_required"),
    "http_403": _fault(403, "request_forbidden", "unsupported_country_region_territory"),
    "http_404": _fault(404, "invalid_request_error", "model_not_found"),
    "http_408": _fault(408, "timeout", "timeout"),
    "http_422": _fault(422, "invalid_request_error", "invalid_value", "temperature"),
    "http_429": _fault(429, "requests", "rate_limit_exceeded"),
    "no_credit": _fault(429, "insufficient_quota", "insufficient_quota"),
    "http_500": _fault(500, "server_error"),
    "http_503": _fault(503, "service_unavailable_error", "overloaded"),
    "http_504": _fault(504, "server_error"),
}
#: Errors in answers of status 200.
ERROR_FAULTS = ("error_event", "error_first", "error_usage")
MID_STREAM_ERROR = _fault(500, "server_error", "server_error")
HTML_PAGE = f"<html><body><h1>Gateway</h1><p>{LEAK_MARKER}</p></body></html>".encode()
BROKEN_JSON = b'{"id": "' + LEAK_MARKER.encode() + b'", "choices": [{'


def check_fault(kind: str) -> str:
    """Return `kind` if there is a fault of that name; raises ValueError that lists the names otherwise."""
    if kind not in FAULTS:
        raise ValueError(f"unknown fault {kind!r}; there are: {', '.join(FAULTS)}")
    return kind


def parse_fault(text: str) -> tuple[str, float]:
    """Read `KIND` or `KIND:RATE` (0 to 1, default 1) as the command line gives it; raises ValueError."""
    kind, _, rate = text.partition(":")
    share = float(rate) if rate else 1.0
    if not 0 <= share <= 1:
        raise ValueError(f"the rate of fault {kind!r} must lie between 0 and 1, not {rate}")
    if kind == "refuse":
        raise ValueError("refuse cannot be drawn by chance: use fail_next('refuse') or the setting refuse_ms")
    return check_fault(kind), share


class FaultPlan:
    """Say which fault strikes the next call: first those asked for by `fail_next`, then by chance.

    Chances are drawn from a generator of its own, so that one seed gives one sequence of faults.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = random.Random(seed)
        self._queue: deque[str] = deque()

    def fail_next(self, kind: str, times: int = 1) -> None:
        """Let the next `times` calls fail by `kind`; further calls of this append to the queue."""
        self._queue.extend([check_fault(kind)] * times)

    def draw(self, rates: Mapping[str, float]) -> str | None:
        """Return the fault of this call, None if it goes well."""
        if self._queue:
            return self._queue.popleft()
        if not rates:
            return None
        chance = self._random.random()
        for kind, rate in rates.items():
            if chance < rate:
                return kind
            chance -= rate
        return None

    def clear(self) -> None:
        """Forget the faults asked for and begin the chances anew."""
        self._queue.clear()
        self._random.seed(self._seed)
