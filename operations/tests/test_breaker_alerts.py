"""Breakers that are open become alerts, which name the deployment."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import BreakerNotice, Deployment
from inference.tests.samples import serve
from inference.upstream.breaker import Breakers, publish
from inference.upstream.errors import CREDIT_USED_UP
from operations.alerts.conditions import RENEWED, failing_deployments


def test_it_tells_of_each_open_breaker(upstream: FakeUpstream) -> None:
    opened, _closed = serve("small", upstream_name="small-1"), serve("large")
    publish(opened.pk, 30, "http 500")
    (condition,) = failing_deployments()
    assert "http 500" in condition.text
    assert condition.subject == f"breaker:{opened.pk}"
    assert condition.title == "Provider openai fails: no calls go to openai/small-1"


@pytest.mark.parametrize("switched_off", ["deployment", "provider", "model"])
def test_it_says_nothing_of_what_is_switched_off(upstream: FakeUpstream, switched_off: str) -> None:
    deployment = serve("small")
    publish(deployment.pk, 30)
    row = deployment if switched_off == "deployment" else getattr(deployment, switched_off)
    type(row).objects.filter(pk=row.pk).update(is_enabled=False)
    assert list(failing_deployments()) == []


def test_it_goes_on_from_a_cool_down_to_the_outcome_of_its_trial(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each cool-down of an outage ended the incident, and the next failed trial told of it again."""
    deployment, breakers, now = serve("small"), Breakers(publish=publish), timezone.now()
    for account in (1, 2, 1, 2, 1):
        breakers.failed(deployment.pk, account)
    assert [condition.is_on for condition in failing_deployments()] == [True]
    monkeypatch.setattr("inference.upstream.breaker.timezone.now", lambda: now + timedelta(seconds=30))
    assert len(list(failing_deployments())) == 1
    breakers.succeeded(deployment.pk, 1)
    assert list(failing_deployments()) == []


class TestForgotten:
    """Notices of processes that have ended: nobody else would find out how things are now."""

    @pytest.fixture
    def deployment(self, upstream: FakeUpstream) -> Deployment:
        """Make a deployment that a process told of long ago."""
        deployment = serve("small")
        publish(deployment.pk, 60, "http 500")
        BreakerNotice.objects.update(seen_at=timezone.now() - RENEWED, open_until=timezone.now())
        return deployment

    def test_it_goes_on_while_the_list_of_models_does_not_come(
        self, upstream: FakeUpstream, deployment: Deployment
    ) -> None:
        upstream.set(models_fault="http_503")
        for _ in range(2):
            (condition,) = failing_deployments()
            assert "http 503" in condition.text
        assert [request.path for request in upstream.requests] == ["/v1/models"]

    def test_it_is_over_when_it_does(self, upstream: FakeUpstream, deployment: Deployment) -> None:
        assert list(failing_deployments()) == []
        assert not BreakerNotice.objects.exists()

    def test_it_is_over_where_nothing_is_served(self, upstream: FakeUpstream, deployment: Deployment) -> None:
        Deployment.objects.filter(pk=deployment.pk).update(is_enabled=False)
        catalog.forget()
        assert list(failing_deployments()) == []
        assert upstream.requests == []

    def test_it_goes_on_where_the_credit_was_used_up(self, upstream: FakeUpstream, deployment: Deployment) -> None:
        """A list of models costs nothing, and so says nothing of it."""
        BreakerNotice.objects.update(cause=f"{CREDIT_USED_UP} (http 402)")
        assert len(list(failing_deployments())) == 1
        assert upstream.requests == []


def test_it_tells_of_credit_that_is_used_up_by_itself(upstream: FakeUpstream) -> None:
    """It began as another failure, maybe, and operators have to do something else about it."""
    deployment, breakers = serve("small", upstream_name="small-1"), Breakers(publish=publish)
    publish(deployment.pk, 30, "http 500")
    breakers.leave_alone(deployment.pk, 300, f"{CREDIT_USED_UP} (http 402)")
    (condition,) = failing_deployments()
    assert condition.subject == f"credit:{deployment.pk}"
    assert condition.title == "The credit is used up at provider openai: no calls go to openai/small-1"
    breakers.succeeded(deployment.pk, 1)
    assert list(failing_deployments()) == []
