"""What of a record goes into which metric."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import generate_latest

from accounts.tests.limits_fixtures import DRAFT
from core.telemetry import metrics
from monitoring.metrics import observe_record
from monitoring.tests.scraped import Growth

RECORD = replace(
    DRAFT,
    model="m",
    status=200,
    cache="miss",
    latency_ms=300.0,
    input_tokens=20,
    output_tokens=10,
    cost=25_000,
)


@pytest.fixture
def growth() -> Growth:
    """Measure from here on."""
    return Growth(lambda: generate_latest(metrics.REGISTRY).decode())


def observe(**changes: Any) -> None:
    """Write down a request."""
    observe_record(replace(RECORD, **changes))


def test_it_counts_an_answer_with_what_it_used(growth: Growth) -> None:
    observe(cached_tokens=5)
    labels = {"endpoint": "chat", "model": "m", "status": "2xx", "outcome": "answered"}
    assert growth("aiapi_requests_total", **labels) == 1
    assert [growth("aiapi_tokens_total", model="m", kind=kind) for kind in ("input", "cached", "output")] == [20, 5, 10]
    assert growth("aiapi_cost_usd_total", model="m") == 0.000025
    assert growth("aiapi_cache_outcomes_total", endpoint="chat", outcome="miss") == 1
    assert growth("aiapi_request_seconds_sum", endpoint="chat", model="m", cached="false") == 0.3
    assert [growth("aiapi_request_seconds_bucket", le=bound) for bound in ("0.25", "0.5")] == [0, 1]
    assert growth("aiapi_first_token_seconds_count") == 0
    observe(first_token_ms=120.0)
    assert growth("aiapi_first_token_seconds_sum", endpoint="chat", model="m") == 0.12
    observe(status=504, cost=90_000)
    assert growth("aiapi_cost_usd_total") == 0.00014, "a failed request may cost something"


def test_it_keeps_answers_from_the_cache_apart(growth: Growth) -> None:
    for outcome in ("hit", "coalesced", "replay"):
        observe(cache=outcome, input_tokens=0, output_tokens=0, cost=0, saved_cost=25_000)
        assert growth("aiapi_cache_outcomes_total", outcome=outcome) == 1
    assert growth("aiapi_request_seconds_count", cached="true") == 3
    assert growth("aiapi_saved_cost_usd_total", model="m") == 0.000075
    assert growth("aiapi_tokens_total") == growth("aiapi_cost_usd_total") == 0


@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        (200, "2xx", "answered"),
        (400, "4xx", "invalid"),
        (404, "4xx", "invalid"),
        (429, "4xx", "limited"),
        (499, "4xx", "left"),
        (500, "5xx", "failed"),
        (504, "5xx", "failed"),
    ],
)
def test_it_tells_whose_fault_it_was(growth: Growth, status: int, kind: str, outcome: str) -> None:
    observe(status=status)
    assert growth("aiapi_requests_total", status=kind, outcome=outcome) == growth("aiapi_requests_total") == 1


def test_it_counts_refusals_by_their_code_as_many_as_the_record_stands_for(growth: Growth) -> None:
    observe(status=429, error_code="tokens_limited", count=7, input_tokens=0, output_tokens=0)
    assert growth("aiapi_limits_refused_total", code="tokens_limited") == growth("aiapi_requests_total") == 7
    assert growth("aiapi_request_seconds_count") == 0


def test_it_has_labels_of_few_values_only() -> None:
    known = {"endpoint", "model", "status", "outcome", "cached", "kind", "code", "provider", "deployment", "route"}
    assert {label for each in metrics.REGISTRY._names_to_collectors.values() for label in each._labelnames} == known  # type: ignore[attr-defined]
