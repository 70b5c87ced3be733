"""Breakers that are open become alerts, which name the deployment."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from inference.tests.samples import serve
from inference.upstream.alerts import open_breakers
from inference.upstream.breaker import Breakers
from inference.upstream.fake import FakeUpstream
from inference.upstream.notices import open_anywhere, publish


def test_it_tells_of_each_open_breaker(upstream: FakeUpstream) -> None:
    opened, _closed = serve("small", upstream_name="small-1"), serve("large")
    publish(opened.pk, 30)
    (condition,) = open_breakers()
    assert condition.subject == f"breaker:{opened.pk}"
    assert condition.title == "Provider openai fails: no calls go to openai/small-1"


@pytest.mark.parametrize("switched_off", ["deployment", "provider", "model"])
def test_it_says_nothing_of_what_is_switched_off(upstream: FakeUpstream, switched_off: str) -> None:
    deployment = serve("small")
    publish(deployment.pk, 30)
    row = deployment if switched_off == "deployment" else getattr(deployment, switched_off)
    type(row).objects.filter(pk=row.pk).update(is_enabled=False)
    assert list(open_breakers()) == []


def test_it_goes_on_from_a_cool_down_to_the_outcome_of_its_trial(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each cool-down of an outage ended the episode, and the next failed trial told of it again."""
    deployment, breakers, now = serve("small"), Breakers(publish=publish), timezone.now()
    for account in (1, 2, 1, 2, 1):
        breakers.failed(deployment.pk, account)
    assert [condition.is_on for condition in open_breakers()] == [True]
    monkeypatch.setattr("inference.upstream.notices.timezone.now", lambda: now + timedelta(seconds=30))
    assert open_anywhere([deployment.pk]) == set()
    assert [condition.is_on for condition in open_breakers()] == [False]
    breakers.succeeded(deployment.pk, 1)
    assert list(open_breakers()) == []
