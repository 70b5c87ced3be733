"""The fake provider's settings, and its faults with their chances and error bodies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

DEFAULT_MODELS = ("gpt-3.5-turbo", "gpt-4o-mini", "text-embedding-3-small")
#: `owned_by` of each model in its list, which marks a provider that bills nothing.
OWNER = "fake"
#: A text in every error of the fake provider, so that a test can prove that no provider's text reaches callers.
LEAK_MARKER = "provider-internal-detail"


@dataclass(frozen=True, slots=True)
class FakeSettings:
    """The behaviour of a fake provider; times in milliseconds."""

    #: From the request to the first byte of the response's head.
    latency_ms: float = 0.0
    #: From the head of a stream to its first event.
    first_token_ms: float = 0.0
    #: Between two events of a stream; 0 sends them all at once.
    chunk_interval_ms: float = 0.0
    #: Between two pieces of an answer under the fault `slow`.
    slow_interval_ms: float = 200.0
    #: Tokens (words) of an answer; None: depends on the input.
    tokens: int | None = None
    #: Share of the prompt's tokens that is reported and billed as cached input.
    cached_ratio: float = 0.0
    #: Share of the prompt's tokens that is reported as written to the cache, as OpenRouter does.
    cache_write_ratio: float = 0.0
    #: Share of the answer's tokens that is reported as reasoning.
    reasoning_ratio: float = 0.0
    #: Chance of each fault in a call to a model, 0 to 1.
    faults: Mapping[str, float] = field(default_factory=dict)
    #: Fault of every GET /v1/models, which `faults` does not affect.
    models_fault: str | None = None
    #: Seconds in the Retry-After header of http_429.
    retry_after: float = 1.0
    #: Key that callers must send; None accepts any.
    api_key: str | None = None
    #: Models that exist; empty: lists a few well-known ones and accepts any name.
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("latency_ms", "first_token_ms", "chunk_interval_ms", "slow_interval_ms", "retry_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("cached_ratio", "cache_write_ratio", "reasoning_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1")
        for fault in [f"{kind}:{rate}" for kind, rate in self.faults.items()] + [self.models_fault or ""]:
            if fault:
                parse_fault(fault)

    def changed(self, changes: Mapping[str, Any]) -> "FakeSettings":
        """Return a copy with `changes`; raises ValueError for an unknown setting or a value out of bounds."""
        if unknown := set(changes) - {each.name for each in fields(self)}:
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
        return replace(self, **{**changes, "models": tuple(changes.get("models", self.models))})


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
    "no_usage": "a good answer that does not report its usage; bills the whole answer",
    "error_event": "an error event half-way through a stream, billed as sent; 200 with an error body on plain calls, "
    "which bills nothing",
    "error_first": "200 with an error body, or a stream whose first event is an error; bills nothing",
    "error_usage": "as error_event, and the error reports the usage; bills half of plain calls too",
    "wrong_type": "200 with an HTML page, as from a proxy in between; bills nothing",
}


class HttpError(Exception):
    """An error answer: its status, and the `fields` of OpenAI's error object. Raised for a request that is refused."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.fields = {"message": message, "type": kind, "param": param, "code": code}

    @property
    def body(self) -> bytes:
        """OpenAI's error body as JSON."""
        return json.dumps({"error": self.fields}).encode()


def _fault(status: int, kind: str, code: str | None = None, param: str | None = None) -> HttpError:
    text = f"The provider failed with {status} ({LEAK_MARKER})."
    if param:  # messages about a parameter are passed on without private details
        text = f"Wrong {param}. See https://{LEAK_MARKER}.example/{status}, {LEAK_MARKER}:8000, or sk-{LEAK_MARKER}."
    return HttpError(status, text, kind=kind, code=code, param=param)


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
#: Faults that are errors in answers of status 200, and that error.
ERROR_FAULTS = ("error_event", "error_first", "error_usage")
ERROR_IN_200 = _fault(500, "server_error", "server_error")
HTML_PAGE = f"<html><body><h1>Gateway</h1><p>{LEAK_MARKER}</p></body></html>".encode()
BROKEN_JSON = b'{"id": "' + LEAK_MARKER.encode() + b'", "choices": [{'


def check_fault(kind: str) -> str:
    """Return `kind` if it is the name of a fault; otherwise raises ValueError with the list of names."""
    if kind not in FAULTS:
        raise ValueError(f"unknown fault {kind!r}; there are: {', '.join(FAULTS)}")
    return kind


def parse_fault(text: str) -> tuple[str, float]:
    """Parse a command line's `KIND` or `KIND:RATE` (0 to 1, default 1); raises ValueError."""
    kind, _, rate = text.partition(":")
    share = float(rate) if rate else 1.0
    if not 0 <= share <= 1:
        raise ValueError(f"the rate of fault {kind!r} must lie between 0 and 1, not {rate}")
    if kind == "refuse":
        raise ValueError("refuse cannot be drawn by chance: use fail_next('refuse') or post refuse_ms")
    return check_fault(kind), share
