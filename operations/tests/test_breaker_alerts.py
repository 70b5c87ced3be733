"""Breakers that are open become alerts, which name the deployment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.conf import settings
from redis.exceptions import ConnectionError as RedisConnectionError

from core.redis.client import redis_client
from inference.catalog import Route, catalog
from inference.fake_provider import FakeUpstream
from inference.models import Deployment
from inference.tests.samples import serve
from inference.upstream.breaker import STILL_FAILING, Breakers, failing, publish
from inference.upstream.errors import CREDIT_USED_UP
from monitoring.models import Alert
from operations.alerts.conditions import RENEWED, failing_deployments
from operations.alerts.incidents import incidents_update


@pytest.fixture
def breakers() -> Iterator[Breakers]:
    """Return the breakers of a process."""
    breakers = Breakers()
    yield breakers
    breakers.forget()


def route_of(deployment: Deployment) -> Route:
    """Return the route to a deployment."""
    routes = (route for model in catalog.models().values() for route in model.routes)
    return next(route for route in routes if route.deployment_id == deployment.pk)


def rewrite(**changes: float | str) -> None:
    """Change what is published, as if it had been written so."""
    client = redis_client(settings.REDIS_URL)
    for name, notice in client.hgetall("aiapi:{breakers}").items():
        client.hset("aiapi:{breakers}", name, json.dumps(json.loads(notice) | changes))


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


def test_it_goes_on_from_a_cool_down_to_the_outcome_of_its_trial(upstream: FakeUpstream, breakers: Breakers) -> None:
    """Else each cool-down of an outage ended the incident, and the next failed trial told of it again."""
    route = route_of(serve("small"))
    for account in (1, 2, 1, 2, 1):
        breakers.failed(route, account)
    assert [condition.is_on for condition in failing_deployments()] == [True]
    rewrite(open_until=datetime.now(UTC).timestamp())
    assert len(list(failing_deployments())) == 1
    breakers.answered(route, 1)
    assert list(failing_deployments()) == []


class TestForgotten:
    """Notices of processes that have ended: nobody else would find out how things are now."""

    @pytest.fixture
    def deployment(self, upstream: FakeUpstream) -> Deployment:
        """Make a deployment that a process told of long ago."""
        deployment = serve("small")
        publish(deployment.pk, 60, "http 500")
        now = datetime.now(UTC)
        rewrite(seen_at=(now - RENEWED).timestamp(), open_until=now.timestamp())
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
        assert failing() == []

    def test_it_is_over_where_nothing_is_served(self, upstream: FakeUpstream, deployment: Deployment) -> None:
        Deployment.objects.filter(pk=deployment.pk).update(is_enabled=False)
        catalog.forget()
        assert list(failing_deployments()) == []
        assert upstream.requests == []

    def test_it_goes_on_where_the_credit_was_used_up(self, upstream: FakeUpstream, deployment: Deployment) -> None:
        """A list of models costs nothing, and so says nothing of it."""
        rewrite(cause=f"{CREDIT_USED_UP} (http 402)")
        assert len(list(failing_deployments())) == 1
        assert upstream.requests == []


def test_it_tells_of_credit_that_is_used_up_by_itself(upstream: FakeUpstream, breakers: Breakers) -> None:
    """It began as another failure, maybe, and operators have to do something else about it."""
    deployment = serve("small", upstream_name="small-1")
    publish(deployment.pk, 30, "http 500")
    breakers.pause(route_of(deployment), 300, f"{CREDIT_USED_UP} (http 402)")
    (condition,) = failing_deployments()
    assert condition.subject == f"credit:{deployment.pk}"
    assert condition.title == "The credit is used up at provider openai: no calls go to openai/small-1"
    breakers.answered(route_of(deployment), 1)
    assert list(failing_deployments()) == []


def test_it_forgets_what_an_ended_process_told_of_long_ago(upstream: FakeUpstream) -> None:
    publish(serve("small").pk, 60, "http 500")
    now = datetime.now(UTC)
    rewrite(seen_at=(now - STILL_FAILING).timestamp(), open_until=now.timestamp())
    assert failing() == []
    assert not redis_client(settings.REDIS_URL).exists("aiapi:{breakers}")


def test_it_ends_no_incident_while_the_state_store_is_away(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can read then whether the breaker has closed."""
    deployment = serve("small")
    publish(deployment.pk, 60, "http 500")
    incidents_update(list(failing_deployments()))
    monkeypatch.setattr("inference.upstream.breaker.state_store", _away)
    incidents_update(list(failing_deployments()))
    (incident,) = Alert.objects.filter(ended_at=None)
    assert incident.subject == f"breaker:{deployment.pk}"
    monkeypatch.undo()
    publish(deployment.pk, None)
    for _ in range(9):
        incidents_update(list(failing_deployments()))
    assert not Alert.objects.filter(ended_at=None).exists()


def _away() -> object:
    raise RedisConnectionError
