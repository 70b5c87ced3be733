"""Which failures of a call those share who wait for it: the provider's own, and none that is this key's alone."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import LazySettings

from accounts.tests.factories import make_key, make_tier
from core.errors import ApiError, ContentFiltered, InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Provider
from inference.single_flight import Flight, Flights
from inference.tests.fixtures import Api
from inference.tests.samples import serve
from inference.upstream.provider_limits import capacity


class Watched(Flights):
    """The flights of a process, which keep what is handed to those who wait."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[ApiError | None] = []

    def leave(self, flight: Flight, **outcome: Any) -> None:
        """End a flight."""
        self.errors.append(outcome.get("error"))
        super().leave(flight, **outcome)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Watch the flights of this process."""
    flights = Watched()
    monkeypatch.setattr("inference.pipeline.flights", flights)
    return flights


def limited(api: Api, **limits: int) -> Api:
    """Return another key of the caller's account, with limits."""
    tier = make_tier("limited", requests_per_minute=None, **limits)
    return api.of(make_key(account=api.key.key.account, tier=tier))


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("http_400", InvalidRequest, "context_length_exceeded"),
        ("http_429", UpstreamBusy, "upstream_busy"),
        ("http_500", UpstreamFailed, "upstream_failed"),
        ("http_504", UpstreamTimeout, "upstream_timeout"),
        ("reset", UpstreamFailed, "upstream_failed"),
        ("content_filter", ContentFiltered, "content_filtered"),
    ],
)
def test_it_hands_on_how_the_provider_failed(
    api: Api, upstream: FakeUpstream, watched: Watched, fault: str, kind: type[ApiError], code: str
) -> None:
    upstream.set(faults={fault: 1}, retry_after=9)
    api.chat()
    (error,) = watched.errors
    assert type(error) is kind
    assert error.error_code == code


def test_it_hands_on_nothing_of_a_refusal_by_the_key_s_own_limits(
    api: Api, upstream: FakeUpstream, watched: Watched
) -> None:
    answer = limited(api, tokens_per_minute=10).chat()
    assert answer.json()["code"] == "bound_exceeds_limit"
    assert watched.errors == [None]


def test_it_hands_on_nothing_where_the_limits_had_no_room_for_another_deployment(
    api: Api, upstream: FakeUpstream, watched: Watched
) -> None:
    deployment = serve("spared")
    spare = Provider.objects.create(name="spare", base_url=upstream.base_url, from_environment=True)
    Deployment.objects.create(model=deployment.model, provider=spare, upstream_name="spared", order=1)
    upstream.fail_next("broken_json")
    poor = limited(api, tokens_per_minute=600, max_output_tokens=300)
    body = {"model": "spared", "messages": [{"role": "user", "content": "a"}], "temperature": 0, "max_tokens": 300}
    assert poor.post("/v1/chat/completions", body).status_code == 502
    assert len(upstream.requests) == 1
    assert watched.errors == [None]


def test_it_hands_on_no_refusal_of_a_call_that_the_limits_cut_short(
    api: Api, upstream: FakeUpstream, watched: Watched
) -> None:
    """A provider may refuse so short an answer; another key may have room for a longer one."""
    poor = limited(api, tokens_per_minute=600, max_output_tokens=1000)
    upstream.set(tokens=10)
    upstream.fail_next("http_400")
    assert poor.chat().status_code == 400
    upstream.fail_next("http_500", times=3)
    assert poor.chat().status_code == 502
    assert [type(error) for error in watched.errors] == [type(None), UpstreamFailed]


def test_it_hands_on_nothing_of_a_process_that_is_full(
    api: Api, upstream: FakeUpstream, watched: Watched, settings: LazySettings
) -> None:
    settings.UPSTREAM_CONCURRENCY, settings.UPSTREAM_QUEUE_SECONDS = 1, 0
    with capacity().slot(0):
        assert api.chat().json()["code"] == "upstream_busy"
    assert watched.errors == [None]
