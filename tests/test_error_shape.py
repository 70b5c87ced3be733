"""Every error answer, of every endpoint and status, has one shape. This is the contract:

1. The body is JSON: `{detail, code, request_id}`, with `errors` (messages by field) where fields are wrong and `limit`
   (name, owner, used, limit, reset) where a limit refused. Under /v1 it is OpenAI's: `{error: {message, type, param,
   code}}`, with `limit` inside; under /v1/messages Anthropic's: `{type, error, request_id}`, with the same inside.
2. `detail` (`message`) is a sentence for a person, `code` a stable name for a program, `request_id` that of the header.
3. Every answer has X-Request-ID and X-Process-Time. 401 has WWW-Authenticate, 405 Allow; 409, 429 and 503 have a
   Retry-After of at least one second.
4. What passed authentication also has the rate headers, `Cache-Control: private, no-store`, and varies by key.
5. Nothing of the inside leaks: no traceback, path, query, address, provider's text or secret, and not the key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import OperationalError

from accounts.key_cache import key_cache
from accounts.tests.factories import make_key
from inference.catalog import catalog
from inference.fake_provider import LEAK_MARKER, FakeUpstream
from inference.models import Price
from inference.tests.fixtures import PROVIDER_SECRET, Api
from monitoring.tests.samples import recorded

MODEL = "gpt-3.5-turbo"
TEXT = "A text that is long enough."
#: A valid body of each endpoint that asks a model.
BODIES: dict[str, Any] = {
    "/chat": {"message": TEXT},
    "/summarize": {"text": TEXT},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": TEXT}]},
    "/v1/completions": {"model": MODEL, "prompt": TEXT},
    "/v1/responses": {"model": MODEL, "input": TEXT},
    "/v1/messages": {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": TEXT}]},
}
#: Deep enough to exhaust the stack of what walks through it, and not that of the parser.
DEEP = b'{"messages": ' + b"[" * 800 + b"]" * 800 + b"}"
ONCE = {"Idempotency-Key": "once"}
EMPTY: tuple[Any, ...] = ({}, b"")
OWN, OPENAI, ANTHROPIC = "/chat", "/v1/chat/completions", "/v1/messages"
READS = ("/stats", "/usage", "/v1/models")
LEAKS = re.compile(
    r"Traceback|Exception|Error\(|\.py\b|site-packages|SELECT|sqlite|psycopg|redis|127\.0\.0\.1|hunter2"
    rf"|{LEAK_MARKER}|{PROVIDER_SECRET}"
)


@dataclass(frozen=True)
class Case:
    """A request and the error that it gets. `broken` says what is broken meanwhile; see `_break`."""

    status: int
    code: str
    path: str
    method: str = "POST"
    body: Any = None
    key: str | None = ""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    broken: str = ""
    authenticated: bool = True

    def __str__(self) -> str:
        return f"{self.status}-{self.code}-{self.method}-{self.path}-{self.broken}"


def each_model_endpoint(status: int, code: str, **options: Any) -> list[Case]:
    """Make a case of every endpoint that asks a model, with its valid body unless another is given."""
    return [Case(status, code, path, **{"body": body, **options}) for path, body in BODIES.items()]


def by_fault(status: int, code: str, *faults: str) -> list[Case]:
    """Make cases of a provider's faults, on each surface."""
    return [
        Case(status, code, path, body=BODIES[path], broken=f"fault {fault}")
        for fault in faults
        for path in (OWN, OPENAI, ANTHROPIC)
    ]


CASES = [
    # 400: what is wrong with the body, as far as anybody can tell
    *each_model_endpoint(400, "malformed_body", body=b"{"),
    *each_model_endpoint(400, "malformed_body", body=b"[1]"),
    *each_model_endpoint(400, "malformed_body", body=b'{"a": "\\ud800"}'),
    *each_model_endpoint(400, "malformed_body", body=b'{"temperature": NaN}'),
    *each_model_endpoint(400, "malformed_body", body=b"[" * 50_000),
    *each_model_endpoint(400, "malformed_body", body=DEEP),
    Case(400, "malformed_body", "/keys", body=DEEP, key="manager"),
    *[
        Case(400, "missing_required_parameter" if path.startswith("/v1") else "invalid_request", path, body=body)
        for path in BODIES
        for body in EMPTY
    ],
    Case(400, "invalid_request", OWN, body={"message": " "}),
    Case(400, "invalid_request", OWN, body={"message": TEXT, "temperature": "1"}),
    Case(400, "invalid_request", OWN, body={"message": TEXT, "unknown": 1}),
    Case(400, "invalid_request", "/summarize", body={"text": TEXT, "length": "tiny"}),
    Case(400, "invalid_type", OPENAI, body={"model": MODEL, "messages": "none"}),
    Case(400, "invalid_type", OPENAI, body={**BODIES[OPENAI], "temperature": "1"}),
    Case(400, "invalid_request", "/keys", body={}, key="manager"),
    Case(400, "malformed_body", "/keys", body=b"{", key="manager"),
    Case(400, "invalid_request", "/health", "GET", key=None, broken="host", authenticated=False),
    *by_fault(400, "context_length_exceeded", "http_400"),
    *by_fault(400, "invalid_value", "http_422"),
    # 401: no key, or one that is none
    *[
        Case(401, code, path, "GET" if path in READS else "POST", body=body, key=key, authenticated=False)
        for key, code in ((None, "api_key_required"), ("ak_nonsense", "invalid_api_key"))
        for path, body in [*BODIES.items(), *((path, None) for path in READS), ("/keys", {})]
    ],
    # 403: a good key, but not for this or not from here
    *each_model_endpoint(403, "scope_denied", key="manager"),
    Case(403, "scope_denied", "/keys", "GET"),
    Case(403, "address_denied", OWN, body=BODIES[OWN], key="elsewhere", authenticated=False),
    Case(403, "address_denied", OPENAI, body=BODIES[OPENAI], key="elsewhere", authenticated=False),
    *each_model_endpoint(403, "price_unknown", key="frugal", broken="price"),
    # 404: no such path, model or thing
    Case(404, "not_found", "/nowhere", "GET", key=None, authenticated=False),
    Case(404, "not_found", "/chat/more", body={}, authenticated=False),
    Case(404, "not_found", "/v1/files", "GET", authenticated=False),
    Case(404, "model_not_found", "/v1/models/none", "GET"),
    Case(404, "not_found", "/keys/999", "GET", key="manager"),
    *[Case(404, "model_not_found", path, body={**body, "model": "none"}) for path, body in BODIES.items()],
    # 405: another method
    *[Case(405, "method_not_allowed", path, "GET") for path in BODIES],
    Case(405, "method_not_allowed", "/stats", "DELETE"),
    Case(405, "method_not_allowed", "/", "PUT", key=None, authenticated=False),
    # 406: nothing acceptable
    *each_model_endpoint(406, "not_acceptable", headers={"Accept": "text/xml"}),
    *[Case(406, "not_acceptable", path, "GET", headers={"Accept": "text/xml"}) for path in READS],
    *[
        Case(401, "api_key_required", path, "GET", key=None, headers={"Accept": "text/xml"}, authenticated=False)
        for path in (*READS, "/keys")
    ],
    Case(406, "not_acceptable", "/health", "GET", key=None, headers={"Accept": "text/xml"}, authenticated=False),
    # 408: a body that does not come
    *each_model_endpoint(408, "request_timeout", broken="slow body"),
    # 409 and 422: an Idempotency-Key that is taken
    *each_model_endpoint(409, "idempotency_in_progress", headers=ONCE, broken="in progress"),
    *each_model_endpoint(422, "idempotency_key_reused", headers=ONCE, broken="used before"),
    *each_model_endpoint(400, "invalid_request", headers={"Idempotency-Key": "two words"}),
    # 413 and 415: too large, or declared as something else
    Case(413, "body_too_large", OWN, body=b" " * (64 * 1024 + 1)),
    Case(413, "body_too_large", "/summarize", body=b" " * (64 * 1024 + 1)),
    Case(413, "body_too_large", OPENAI, body=b" " * (4 * 1024 + 1), broken="small /v1"),
    *each_model_endpoint(415, "unsupported_media_type", content_type="text/plain"),
    *each_model_endpoint(415, "unsupported_media_type", headers={"Content-Encoding": "gzip"}),
    # 429: a limit has no room
    *each_model_endpoint(429, "rate_limited", broken="rate"),
    Case(429, "budget_exhausted", OWN, body=BODIES[OWN], key="poor"),
    Case(429, "budget_exhausted", OPENAI, body=BODIES[OPENAI], key="poor"),
    Case(429, "too_many_failures", OWN, body=BODIES[OWN], key="bad", broken="attempts", authenticated=False),
    Case(429, "too_many_failures", OPENAI, body=BODIES[OPENAI], key="bad", broken="attempts", authenticated=False),
    # 500: a bug
    *each_model_endpoint(500, "internal_error", broken="bug"),
    Case(500, "internal_error", "/stats", "GET", broken="bug"),
    # 502 to 504: the provider, or what we need ourselves
    *by_fault(502, "upstream_failed", "http_401", "http_500", "reset", "broken_json", "wrong_type", "empty_choices"),
    Case(502, "content_filtered", OWN, body=BODIES[OWN], broken="fault content_filter"),
    *by_fault(503, "upstream_busy", "http_429"),
    *each_model_endpoint(503, "dependency_unavailable", broken="database", authenticated=False),
    Case(503, "dependency_unavailable", "/stats", "GET", broken="database", authenticated=False),
    *by_fault(504, "upstream_timeout", "hang", "http_408", "http_504"),
]
#: Codes that OpenAI's clients know by another name.
OPENAI_CODES = {
    "api_key_required": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "budget_exhausted": "insufficient_quota",
}
#: Types of an error by its status.
OPENAI_TYPES = {429: ("requests", "insufficient_quota"), **dict.fromkeys(range(500, 600), ("server_error",))}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_keeps_the_contract(
    case: Case, api: Api, upstream: FakeUpstream, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = _key_of(case, api)
    if case.headers == ONCE:
        _take_key(case, api, monkeypatch)
    _break(case.broken, api, upstream, settings, monkeypatch)
    answer = api.send(case.method, case.path, case.body, key=key, content_type=case.content_type, headers=case.headers)
    assert answer.status_code == case.status, answer.content
    assert answer["Content-Type"] == "application/json"
    _assert_body(case, answer)
    _assert_headers(case, answer)
    assert not LEAKS.search(answer.content.decode() + str(answer.headers))
    assert not key or key not in answer.content.decode()


def test_it_covers_every_status_of_the_contract() -> None:
    assert {case.status for case in CASES} == {
        *range(400, 407),
        408,
        409,
        413,
        415,
        422,
        429,
        500,
        *range(502, 505),
    } - {402}


@pytest.mark.parametrize(
    ("key", "detail"),
    [(None, "API key required. Include X-API-Key header."), ("ak_nonsense", "Invalid API key")],
)
def test_it_words_401_as_promised(api: Api, key: str | None, detail: str) -> None:
    assert api.post(OWN, BODIES[OWN], key=key).json()["detail"] == detail
    assert api.post(OPENAI, BODIES[OPENAI], key=key).json()["error"]["message"] == detail


def _assert_body(case: Case, answer: Any) -> None:
    body = answer.json()
    if case.path == ANTHROPIC:
        assert set(body) == {"type", "error", "request_id"}
        assert set(body["error"]) - {"limit"} == {"message", "type", "param", "code"}
        detail, code = body["error"]["message"], body["error"]["code"]
        assert (body["type"], code) == ("error", case.code)
        assert body["error"]["type"] == ANTHROPIC_TYPES.get(case.status, "invalid_request_error")
        assert body["request_id"] == answer["X-Request-ID"] == answer["request-id"]
    elif case.path.startswith("/v1"):
        assert set(body) == {"error"}
        error = body["error"]
        assert set(error) - {"limit"} == {"message", "type", "param", "code"}
        detail, code = error["message"], error["code"]
        assert code == OPENAI_CODES.get(case.code, case.code)
        assert error["type"] in OPENAI_TYPES.get(case.status, ("invalid_request_error",))
    else:
        assert {"detail", "code", "request_id"} <= set(body) <= {"detail", "code", "request_id", "errors", "limit"}
        detail, code = body["detail"], body["code"]
        assert code == case.code
        assert body["request_id"] == answer["X-Request-ID"]
        if "errors" in body:
            assert all(texts and all(isinstance(text, str) for text in texts) for texts in body["errors"].values())
    assert isinstance(detail, str)
    assert 5 < len(detail) < 300
    limit = body.get("limit") or body.get("error", {}).get("limit")
    assert (limit is not None) == (case.status == 429 and case.code != "too_many_failures")
    needed = {"needed"} if case.code == "budget_exhausted" else set()
    assert limit is None or set(limit) == {"name", "owner", "used", "limit", "reset"} | needed


def _assert_headers(case: Case, answer: Any) -> None:
    assert answer["X-Request-ID"]
    assert re.fullmatch(r"\d+\.\d{3}", answer["X-Process-Time"])
    assert ("WWW-Authenticate" in answer.headers) == (case.status == 401)
    assert case.status != 405 or answer["Allow"]
    assert ("Retry-After" in answer.headers) == (case.status in (409, 429, 503))
    assert int(answer.headers.get("Retry-After", 1)) >= 1
    assert ("X-RateLimit-Limit" in answer.headers) == case.authenticated
    if case.authenticated:
        assert answer["Cache-Control"] == "private, no-store"
        assert {"Authorization", "X-API-Key"} <= {name.strip() for name in answer["Vary"].split(",")}


def _key_of(case: Case, api: Api) -> str | None:
    """Return the key that a case names: the caller's own, a special one, or a text that is none."""
    special: dict[str, dict[str, Any]] = {
        "manager": {"scopes": ["keys:manage"]},
        "elsewhere": {"allowed_ips": ["192.0.2.7"]},
        "poor": {"monthly_token_budget": 10_000},
        "frugal": {"monthly_cost_budget": 5},
    }
    if case.key not in special:
        return case.key or (None if case.key is None else api.key.plain)
    issued = make_key(name=case.key, **special[case.key])
    if case.key == "poor":
        recorded(issued, input_tokens=9_990, output_tokens=0)
    return issued.plain


def _break(
    what: str, api: Api, upstream: FakeUpstream, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bring about what a case needs to be broken."""
    settings.UPSTREAM_TIMEOUT = 0.3 if what == "fault hang" else 5.0
    monkeypatch.setattr("inference.upstream.routing.FIRST_PAUSE", 0.01)
    match what.split():
        case ["fault", fault]:
            upstream.set(faults={fault: 1}, retry_after=30)
        case ["rate"]:
            for _ in range(5):
                api.post(OWN, b"{")
        case ["attempts"]:
            settings.FAILED_KEY_RATE = "1/h"
            api.post(OWN, b"{", key="bad")
        case ["host"]:
            settings.ALLOWED_HOSTS = ["api.example.com"]
        case ["small", "/v1"]:
            settings.MAX_V1_BODY_BYTES = 4 * 1024
        case ["price"]:
            Price.objects.all().delete()
            catalog.forget()
        case ["slow", "body"]:
            monkeypatch.setattr("django.core.handlers.wsgi.LimitedStream.read", _time_out)
        case ["database"]:
            key_cache.forget()
            monkeypatch.setattr("accounts.key_cache._query", _fail)
        case ["bug"]:
            monkeypatch.setattr("inference.call.Call.choose", _stumble)
            monkeypatch.setattr("monitoring.views.stats", _stumble)


def _take_key(case: Case, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the Idempotency-Key of a case: for another request, or for the same one which then doesn't end."""
    if case.broken == "in progress":
        for end in ("finish", "release"):
            monkeypatch.setattr(f"accounts.idempotency.Claim.{end}", lambda *parts: None)
    api.post(case.path, case.body if case.broken == "in progress" else {}, headers=ONCE)


def _fail(*arguments: Any) -> None:
    raise OperationalError("could not connect to postgresql://user:hunter2@db.internal")


def _time_out(*arguments: Any) -> None:
    raise TimeoutError("192.0.2.7 sent 3 of 40 bytes")


def _stumble(*arguments: Any, **options: Any) -> None:
    raise RuntimeError("hunter2 at /srv/app/secret.py")
