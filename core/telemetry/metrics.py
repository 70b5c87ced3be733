"""Prometheus metrics; those of requests are in monitoring.metrics.

No label identifies a key or an account. A `model` label is the public name of a configured model, or empty if the
request failed before its model was known.

The web workers of a server share a folder (core.telemetry.metrics_folder), and any of them can answer a scrape:
counters and histograms are sums over all workers since the server's start, including workers that have ended; gauges
cover running workers only. operations.scrape reads the folder.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # an extra series for each metric, which workers don't share

#: The metrics of this process alone; under gunicorn they are also in the folder that the workers share.
REGISTRY = CollectorRegistry()

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
NANO = 1e-9
MILLI = 1e-3
CLIENT_LEFT = 499

#: Gauge values of breaker states. The highest of all workers is exported.
BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}

upstream_attempts = Counter(
    "aiapi_upstream_attempts",
    "Calls to providers, retries and fallbacks included: ok, abandoned, no_room (not sent), or the failure's code.",
    ["provider", "outcome"],
    registry=REGISTRY,
)
breaker_state = Gauge(
    "aiapi_breaker_state",
    "A deployment's circuit breaker, the worst of any web worker: 0 closed, 1 half-open, 2 open.",
    ["deployment"],
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
upstream_calls = Gauge(
    "aiapi_upstream_calls", "Calls to providers in progress.", multiprocess_mode="livesum", registry=REGISTRY
)
upstream_queue = Gauge(
    "aiapi_upstream_queue",
    "Calls that wait because UPSTREAM_CONCURRENCY are in progress.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
open_streams = Gauge(
    "aiapi_open_streams", "Streamed answers in progress.", multiprocess_mode="livesum", registry=REGISTRY
)
http_responses = Counter(
    "aiapi_http_responses",
    "Responses to requests of any kind, also those that failed before they were recorded.",
    ["route", "status"],
    registry=REGISTRY,
)
requests_shed = Counter(
    "aiapi_requests_shed",
    "Model calls refused because the web worker was overloaded, before authentication; in no other metric.",
    registry=REGISTRY,
)


def observe_attempt(provider: str, outcome: str) -> None:
    """Count a call to a provider. `outcome`: `ok`, `abandoned`, `no_room` (provider's limits) or a failure code."""
    _attempts(provider, outcome).inc()


def observe_breaker(deployment: str, state: str) -> None:
    """Set the state of a deployment's breaker if it has changed."""
    if _breaker_states.get(deployment) != state:
        _breaker_states[deployment] = state
        breaker_state.labels(deployment).set(BREAKER_STATES[state])


def observe_response(route: str, status: int) -> None:
    """Count a response of any endpoint by route name and status."""
    _responses(route, status).inc()


def class_of(status: int) -> str:
    """Return the class of a status, such as `2xx`."""
    return f"{status // 100}xx"


# Looking up the series of some labels takes longer than incrementing it, so the series are cached. Their number is
# bounded by the combinations of endpoints, models and statuses.
_breaker_states: dict[str, str] = {}


@cache
def _attempts(provider: str, outcome: str) -> Counter:
    return upstream_attempts.labels(provider, outcome)


@cache
def _responses(route: str, status: int) -> Counter:
    return http_responses.labels(route, class_of(status))
