"""Prometheus metrics.

inference.accounting updates the request metrics when a usage record becomes final, so they agree with the request log.
No label identifies a key or an account. A `model` label is the public name of a configured model, or empty if the
request failed before its model was known.

The workers of a server share a folder (core.telemetry.metrics_folder), and any of them can answer a scrape:
counters and histograms are sums over all workers since the server's start, including workers that have ended; gauges
cover running workers only. operations.scrape reads the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # an extra series for each metric, which workers don't share

#: The metrics of this process alone; under gunicorn they are also in the folder that the workers share.
REGISTRY = CollectorRegistry()

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
NANO = 1e-9
MILLI = 1e-3
CLIENT_LEFT = 499

#: Gauge values of breaker states. The highest of all workers is exported.
BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}

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
    "Tokens that were used, as billed: input, output, and cached (those of the input that the provider had cached).",
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
    "What cached, coalesced and replayed answers spared, in US dollars.",
    ["model"],
    registry=REGISTRY,
)
cache_outcomes = Counter(
    "aiapi_cache_outcomes",
    "Requests by what the cache did: hit, miss, coalesced, bypass or replay.",
    ["endpoint", "outcome"],
    registry=REGISTRY,
)
limits_refused = Counter(
    "aiapi_limits_refused",
    "Requests that a limit or budget refused, by the answer's code.",
    ["code"],
    registry=REGISTRY,
)
upstream_attempts = Counter(
    "aiapi_upstream_attempts",
    "Calls to providers, retries and fallbacks included: ok, abandoned, no_room (not sent), or the failure's code.",
    ["provider", "outcome"],
    registry=REGISTRY,
)
breaker_state = Gauge(
    "aiapi_breaker_state",
    "A deployment's circuit breaker, the worst of any worker: 0 closed, 1 half open (on trial), 2 open.",
    ["deployment"],
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
upstream_calls = Gauge(
    "aiapi_upstream_calls", "Calls to providers that run now.", multiprocess_mode="livesum", registry=REGISTRY
)
upstream_queue = Gauge(
    "aiapi_upstream_queue",
    "Calls that wait for a place among UPSTREAM_CONCURRENCY.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
open_streams = Gauge(
    "aiapi_open_streams", "Streamed answers that run now.", multiprocess_mode="livesum", registry=REGISTRY
)
http_responses = Counter(
    "aiapi_http_responses",
    "Answers to requests of any kind, also those that failed before they were recorded.",
    ["route", "status"],
    registry=REGISTRY,
)


def observe_record(record: Mapping[str, Any]) -> None:
    """Count a request from its final record. monitoring.records documents the record's keys."""
    endpoint, model, status = record["endpoint"], record.get("model", ""), record["status"]
    number, outcome = record.get("count", 1), record.get("cache", "")
    _requests(endpoint, model, status).inc(number)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        _refused(record.get("error_code", "")).inc(number)
    if status < HTTPStatus.BAD_REQUEST:
        _seconds(endpoint, model, outcome).observe(record["latency_ms"] * MILLI)
    if outcome:
        _cache(endpoint, outcome).inc(number)
    if "first_token_ms" in record:
        _first_token(endpoint, model).observe(record["first_token_ms"] * MILLI)
    if record["input_tokens"] or record["output_tokens"]:
        _observe_use(model, record)
    if record.get("saved_cost"):
        _saved(model).inc(record["saved_cost"] * NANO)


def observe_attempt(provider: str, outcome: str) -> None:
    """Count a call to a provider. `outcome`: `ok`, `abandoned`, `no_room` (provider's limits) or a failure code."""
    _attempts(provider, outcome).inc()


def observe_breaker(deployment: str, state: str) -> None:
    """Set the state of a deployment's breaker if it has changed."""
    if _breakers.get(deployment) != state:
        _breakers[deployment] = state
        breaker_state.labels(deployment).set(BREAKER_STATES[state])


def observe_response(route: str, status: int) -> None:
    """Count a response of any endpoint by route name and status."""
    _responses(route, status).inc()


def outcome_of(status: int) -> str:
    """Return the outcome of a status: answered, limited, left, invalid (caller's error) or failed (any other error)."""
    if status < HTTPStatus.BAD_REQUEST:
        return "answered"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "limited"
    if status == CLIENT_LEFT:
        return "left"
    return "invalid" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"


def _observe_use(model: str, record: Mapping[str, Any]) -> None:
    given, cached, written, price = _used(model)
    given.inc(record["input_tokens"])
    written.inc(record["output_tokens"])
    if record.get("cached_tokens"):
        cached.inc(record["cached_tokens"])
    price.inc(record["cost"] * NANO)
    if record.get("unpriced"):
        _unpriced(model).inc()


def _class_of(status: int) -> str:
    return f"{status // 100}xx"


# Looking up the series of some labels takes longer than incrementing it, so the series are cached. Their number is
# bounded by the combinations of endpoints, models and statuses.
_breakers: dict[str, str] = {}


@cache
def _requests(endpoint: str, model: str, status: int) -> Counter:
    return requests.labels(endpoint, model, _class_of(status), outcome_of(status))


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


@cache
def _attempts(provider: str, outcome: str) -> Counter:
    return upstream_attempts.labels(provider, outcome)


@cache
def _responses(route: str, status: int) -> Counter:
    return http_responses.labels(route, _class_of(status))
