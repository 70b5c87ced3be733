"""What Prometheus metrics and OpenTelemetry spans take from a usage record.

They are updated when a record becomes final, so they agree with the request log (see core.telemetry.metrics).
"""

from __future__ import annotations

from functools import cache
from http import HTTPStatus

from prometheus_client import Counter, Histogram

from accounts.limits.records import UsageRecord
from core.telemetry.metrics import CLIENT_LEFT, MILLI, NANO, REGISTRY, SECONDS, class_of

#: Span attributes by record field, with OpenTelemetry's semantic names where they exist.
SPAN_ATTRIBUTES = {
    "endpoint": "aiapi.endpoint",
    "model": "gen_ai.request.model",
    "deployment": "aiapi.deployment",
    "cache": "aiapi.cache",
    "error_code": "error.type",
    "attempts": "aiapi.attempts",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
}

requests = Counter(
    "aiapi_requests",
    "Requests to model endpoints that passed authentication, as the request log counts them.",
    ["endpoint", "model", "status", "outcome"],
    registry=REGISTRY,
)
request_seconds = Histogram(
    "aiapi_request_seconds",
    "Seconds from a request to the end of its answer, of those that were answered.",
    ["endpoint", "model", "cached"],
    buckets=SECONDS,
    registry=REGISTRY,
)
first_token_seconds = Histogram(
    "aiapi_first_token_seconds",
    "Seconds from a request to the first byte of the provider's stream.",
    ["endpoint", "model"],
    buckets=SECONDS,
    registry=REGISTRY,
)
tokens = Counter(
    "aiapi_tokens",
    "Tokens as billed: input, output, and cached (the part of the input that the provider had cached).",
    ["model", "kind"],
    registry=REGISTRY,
)
cost = Counter("aiapi_cost_usd", "What requests cost, in US dollars.", ["model"], registry=REGISTRY)
unpriced = Counter(
    "aiapi_unpriced_requests",
    "Requests whose cost is unknown, because the model has no price.",
    ["model"],
    registry=REGISTRY,
)
saved_cost = Counter(
    "aiapi_saved_cost_usd",
    "What cached, coalesced and replayed answers saved, in US dollars.",
    ["model"],
    registry=REGISTRY,
)
cache_outcomes = Counter(
    "aiapi_cache_outcomes",
    "Requests by cache outcome: hit, miss, coalesced, bypass or replay.",
    ["endpoint", "outcome"],
    registry=REGISTRY,
)
limits_refused = Counter(
    "aiapi_limits_refused",
    "Requests that a limit or budget refused, by the answer's code.",
    ["code"],
    registry=REGISTRY,
)


def observe_record(record: UsageRecord) -> None:
    """Count a request from its final record."""
    endpoint, model, status = record.endpoint, record.model, record.status
    _requests(endpoint, model, status).inc(record.count)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        _refused(record.error_code).inc(record.count)
    if status < HTTPStatus.BAD_REQUEST:
        _seconds(endpoint, model, record.cache).observe(record.latency_ms * MILLI)
    if record.cache:
        _cache(endpoint, record.cache).inc(record.count)
    if record.first_token_ms is not None:
        _first_token(endpoint, model).observe(record.first_token_ms * MILLI)
    if record.input_tokens or record.output_tokens:
        _observe_use(record)
    if record.saved_cost:
        _saved(model).inc(record.saved_cost * NANO)


def span_attributes(record: UsageRecord) -> dict[str, str | int]:
    """Return the attributes of a request's span."""
    return {name: value for field, name in SPAN_ATTRIBUTES.items() if (value := getattr(record, field))}


def outcome_of(status: int) -> str:
    """Return the outcome of a status: answered, limited, left (which rollups count as invalid), invalid or failed."""
    if status < HTTPStatus.BAD_REQUEST:
        return "answered"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "limited"
    if status == CLIENT_LEFT:
        return "left"
    return "invalid" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"


def _observe_use(record: UsageRecord) -> None:
    given, cached, written, price = _used(record.model)
    given.inc(record.input_tokens)
    written.inc(record.output_tokens)
    if record.cached_tokens:
        cached.inc(record.cached_tokens)
    price.inc((record.cost or 0) * NANO)
    if record.cost is None:
        _unpriced(record.model).inc()


# Looking up the series of some labels takes longer than incrementing it, so the series are cached. Their number is
# bounded by the combinations of endpoints, models and statuses.


@cache
def _requests(endpoint: str, model: str, status: int) -> Counter:
    return requests.labels(endpoint, model, class_of(status), outcome_of(status))


@cache
def _seconds(endpoint: str, model: str, outcome: str) -> Histogram:
    is_cached = outcome in ("hit", "coalesced", "replay")
    return request_seconds.labels(endpoint, model, "true" if is_cached else "false")


@cache
def _first_token(endpoint: str, model: str) -> Histogram:
    return first_token_seconds.labels(endpoint, model)


@cache
def _used(model: str) -> tuple[Counter, Counter, Counter, Counter]:
    given, cached, written = (tokens.labels(model, kind) for kind in ("input", "cached", "output"))
    return given, cached, written, cost.labels(model)


@cache
def _unpriced(model: str) -> Counter:
    return unpriced.labels(model)


@cache
def _saved(model: str) -> Counter:
    return saved_cost.labels(model)


@cache
def _cache(endpoint: str, outcome: str) -> Counter:
    return cache_outcomes.labels(endpoint, outcome)


@cache
def _refused(code: str) -> Counter:
    return limits_refused.labels(code)
