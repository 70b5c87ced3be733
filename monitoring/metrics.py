"""What Prometheus metrics and OpenTelemetry spans take from a usage record.

They are updated when a record becomes final, so they agree with the request log (see core.telemetry.metrics).
"""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import TypeVar

from prometheus_client import Counter, Histogram

from accounts.limits.records import UsageRecord
from core.telemetry.metrics import CLIENT_LEFT, MILLI, NANO, REGISTRY, SECONDS, class_of
from monitoring.models import Outcome, outcome_of

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
    "Tokens as billed: input and output, and their parts cached, cache_write and reasoning.",
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


M = TypeVar("M", Counter, Histogram)


def observe_record(record: UsageRecord) -> None:
    """Count a request from its final record."""
    endpoint, model, status, many = record.endpoint, record.model, record.status, record.count
    _requests(endpoint, model, status).inc(many)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        _series(limits_refused, record.error_code).inc(many)
    if status < HTTPStatus.BAD_REQUEST:
        is_cached = "true" if record.cache in ("hit", "coalesced", "replay") else "false"
        _series(request_seconds, endpoint, model, is_cached).observe(record.latency_ms * MILLI)
    if record.cache:
        _series(cache_outcomes, endpoint, record.cache).inc(many)
    if record.first_token_ms is not None:
        _series(first_token_seconds, endpoint, model).observe(record.first_token_ms * MILLI)
    if record.input_tokens or record.output_tokens:
        _series(tokens, model, "input").inc(record.input_tokens)
        _series(tokens, model, "cached").inc(record.cached_tokens)
        _series(tokens, model, "output").inc(record.output_tokens)
        if record.cache_write_tokens:
            _series(tokens, model, "cache_write").inc(record.cache_write_tokens)
        if record.reasoning_tokens:
            _series(tokens, model, "reasoning").inc(record.reasoning_tokens)
        _series(cost, model).inc((record.cost or 0) * NANO)
        if record.cost is None:
            _series(unpriced, model).inc()
    if record.saved_cost:
        _series(saved_cost, model).inc(record.saved_cost * NANO)


@cache
def _requests(endpoint: str, model: str, status: int) -> Counter:
    return requests.labels(endpoint, model, class_of(status), outcome_label(status))


@cache
def _series(metric: M, *labels: str) -> M:
    """Return a metric's series of some labels. To look it up in the metric takes longer than to increment it.

    The number of series is bounded by the combinations of endpoints, models and statuses.
    """
    return metric.labels(*labels)


def span_attributes(record: UsageRecord) -> dict[str, str | int]:
    """Return the attributes of a request's span."""
    return {name: value for field, name in SPAN_ATTRIBUTES.items() if (value := getattr(record, field))}


def outcome_label(status: int) -> str:
    """Return a status's outcome as metrics name it: `answered` for ok, and `left` for a client that left (invalid)."""
    if status == CLIENT_LEFT:
        return "left"
    outcome = outcome_of(status)
    return "answered" if outcome == Outcome.OK else outcome
