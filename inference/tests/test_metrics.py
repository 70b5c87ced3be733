"""The metrics of real requests: what the log has, and no name of anybody."""

from __future__ import annotations

from collections import Counter

import pytest

from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import MODEL, Api, Records
from inference.upstream.breaker import breakers
from monitoring.tests.scraped import Growth, samples
from tests.processes import wait_until


@pytest.fixture
def growth(api: Api, upstream: FakeUpstream) -> Growth:
    """Measure from here on."""
    breakers.forget()
    return Growth(lambda: read(api))


def read(api: Api) -> str:
    """Read the metrics."""
    return api.get("/metrics", key=None).content.decode()


def test_it_agrees_with_the_log(api: Api, growth: Growth, records: Records) -> None:
    api.chat("one")
    api.chat("one")
    api.chat("two")
    api.chat("")
    api.chat("model", model="nobody-has-it")
    for _ in range(3):
        api.chat("over the limit of five")
    log = records()
    outcomes = Counter(record.cache for record in log if record.cache)
    assert growth("aiapi_requests_total", endpoint="chat") == sum(record.count for record in log) == 8
    assert growth("aiapi_limits_refused_total", code="rate_limited") == 3
    for outcome, number in outcomes.items():
        assert growth("aiapi_cache_outcomes_total", outcome=outcome) == number
    assert growth("aiapi_tokens_total", model=MODEL, kind="output") == sum(record.output_tokens for record in log) > 0
    assert growth("aiapi_tokens_total", model=MODEL, kind="input") == sum(record.input_tokens for record in log)
    assert growth("aiapi_cost_usd_total", model=MODEL) == float(sum(record.cost or 0 for record in log))
    assert growth("aiapi_request_seconds_count", cached="true") == 1
    assert growth("aiapi_upstream_attempts_total", provider="openai", outcome="ok") == 2
    assert growth("aiapi_http_responses_total", route="chat", status="4xx") == 5


def test_it_has_no_name_of_a_caller_and_no_word_of_theirs(api: Api, growth: Growth) -> None:
    api.chat("xylophone", model="made-up-model")
    api.chat("xylophone")
    text = read(api)
    for word in ("xylophone", "made-up-model", api.key.plain, api.key.key.account.name, api.key.key.prefix):
        assert word not in text


def test_it_counts_what_failed_before_anybody_was_known(api: Api, growth: Growth) -> None:
    assert api.post("/chat", {"message": "hello"}, key="ak_wrong").status_code == 401
    api.get("/nowhere/at/all")
    api.get("/admin/login/")
    assert growth("aiapi_http_responses_total", route="chat", status="4xx") == 1
    assert growth("aiapi_http_responses_total", route="other", status="4xx") == 1
    assert growth("aiapi_http_responses_total", route="admin", status="2xx") == 1
    assert growth("aiapi_requests_total") == 0


def test_it_counts_attempts_by_how_they_ended(roomy: Api, growth: Growth, upstream: FakeUpstream) -> None:
    upstream.fail_next("http_400")
    assert roomy.chat("rejected").status_code == 400
    upstream.fail_next("http_500", 3)
    assert roomy.chat("failing").status_code == 502
    assert growth("aiapi_upstream_attempts_total", outcome="invalid_request") == 1
    assert growth("aiapi_upstream_attempts_total", outcome="upstream_failed") == 3
    assert growth("aiapi_requests_total", outcome="failed", model=MODEL) == 1


def test_it_shows_the_breaker_of_each_deployment(roomy: Api, growth: Growth, upstream: FakeUpstream) -> None:
    roomy.chat("well")
    assert states(roomy) == {f"openai/{MODEL}": 0.0}
    upstream.refuse()
    roomy.chat("down")
    assert states(roomy) == {f"openai/{MODEL}": 2.0}
    upstream.listen()
    wait_until(lambda: states(roomy) == {f"openai/{MODEL}": 0.0}, "a probe to find that it is back")
    roomy.chat("well again")
    assert states(roomy) == {f"openai/{MODEL}": 0.0}


def states(api: Api) -> dict[str, float]:
    """Return the states of breakers that are shown, by deployment."""
    return {
        sample.labels["deployment"]: sample.value
        for sample in samples(read(api))
        if sample.name == "aiapi_breaker_state"
    }
