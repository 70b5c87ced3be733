"""Breakers that are open: the dashboard's list of deployments, and alerts, which name the deployment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.conf import settings
from redis.exceptions import ConnectionError as RedisConnectionError

from accounts.tests.factories import make_key
from core.redis.client import redis_client
from inference.catalog import Route, catalog
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Provider
from inference.tests.samples import serve
from inference.upstream.breaker import FAILURES_TO_OPEN, STILL_FAILING, Breakers, failing, publish
from inference.upstream.breaker import breakers as own_breakers
from inference.upstream.errors import CREDIT_USED_UP
from monitoring.models import Alert
from monitoring.tests.samples import recorded
from operations.alerts.conditions import RENEWED, failing_deployments
from operations.alerts.incidents import incidents_update
from operations.deployments import DeploymentState, deployment_states

NOTICES = "aiapi:{breakers}"


@pytest.fixture
def breakers() -> Iterator[Breakers]:
    """Return the breakers of another process."""
    breakers = Breakers()
    yield breakers
    breakers.forget()


@pytest.fixture
def deployment(upstream: FakeUpstream) -> Deployment:
    """Make a deployment."""
    return serve("small", upstream_name="small-1")


def route_of(deployment: Deployment) -> Route:
    """Return the route to a deployment."""
    routes = (route for model in catalog.models().values() for route in model.routes)
    return next(route for route in routes if route.deployment_id == deployment.pk)


def open_for_all(breakers: Breakers, route: Route) -> None:
    """Let calls of several accounts fail until the breaker opens."""
    for account in range(FAILURES_TO_OPEN):
        breakers.failed(route, account)


def rewrite(**changes: float | str) -> None:
    """Change what is published, as if it had been written so."""
    client = redis_client(settings.REDIS_URL)
    for name, notice in client.hgetall(NOTICES).items():
        client.hset(NOTICES, name, json.dumps(json.loads(notice) | changes))


def state_of(deployment: Deployment) -> DeploymentState:
    """Return a deployment's state on the dashboard."""
    url = f"/admin/inference/deployment/{deployment.pk}/change/"
    return next(state for state in deployment_states() if state.url == url)


class TestDashboard:
    def test_it_shows_a_deployments_part_in_the_models_latest_calls(self, deployment: Deployment) -> None:
        assert state_of(deployment).recent is None
        issued = make_key()
        own = {"model": "small", "deployment": "openai/small-1", "cost": 2_000_000_000, "latency_ms": 900.0}
        for changes in (
            {**own, "input_tokens": 100, "cached_tokens": 25},
            {**own, "input_tokens": 100, "cached_tokens": 25, "first_token_ms": 100.0},
            {**own, "input_tokens": 0, "cached_tokens": 0, "first_token_ms": 300.0},
            {**own, "cache": "hit"},
            {**own, "deployment": "openai/other"},
            {**own, "model": "another"},
            {"model": "small", "status": 429, "deployment": ""},
        ):
            recorded(issued, **changes)
        shown = "75 % of the model's latest calls · 300 ms · $6.00 · 25 % of input cached"
        assert str(state_of(deployment).recent) == shown

    def test_it_shows_breakers_of_this_process_and_of_others(self, deployment: Deployment, breakers: Breakers) -> None:
        state = state_of(deployment)
        assert (state.model, state.provider, state.name) == ("small", "openai", "small-1")
        assert (state.state, state.is_enabled, state.is_troubled) == ("closed", True, False)
        for each in (breakers, own_breakers):
            open_for_all(each, route_of(deployment))
            state = state_of(deployment)
            assert (state.state, state.is_troubled) == ("open", True)
            assert state.open_since is not None

    def test_it_shows_an_address_that_can_t_be_reached(self, deployment: Deployment) -> None:
        own_breakers.eject(route_of(deployment))
        state = state_of(deployment)
        assert (state.state, state.is_troubled) == ("open", True)
        assert state.open_since is not None
        own_breakers.answered(route_of(deployment), 1)
        assert state_of(deployment).state == "closed"

    def test_it_shows_what_is_switched_off(self, deployment: Deployment) -> None:
        Provider.objects.update(is_enabled=False)
        assert not state_of(deployment).is_enabled


def test_it_alerts_of_each_open_breaker(deployment: Deployment) -> None:
    serve("large")
    publish(deployment.pk, 30, "http 500")
    (condition,) = failing_deployments()
    assert "HTTP 500" in condition.text
    assert condition.subject == f"breaker:{deployment.pk}"
    assert condition.title == "openai is down for small: HTTP 500"


@pytest.mark.parametrize("switched_off", ["deployment", "provider", "model"])
def test_it_says_nothing_of_what_is_switched_off(deployment: Deployment, switched_off: str) -> None:
    publish(deployment.pk, 30)
    row = deployment if switched_off == "deployment" else getattr(deployment, switched_off)
    type(row).objects.filter(pk=row.pk).update(is_enabled=False)
    assert list(failing_deployments()) == []


def test_it_goes_on_from_a_cool_down_to_the_outcome_of_its_trial(deployment: Deployment, breakers: Breakers) -> None:
    """Else each cool-down of an outage ended the incident, and the next failed trial began another."""
    route = route_of(deployment)
    open_for_all(breakers, route)
    assert [condition.is_on for condition in failing_deployments()] == [True]
    rewrite(open_until=datetime.now(UTC).timestamp())
    assert len(list(failing_deployments())) == 1
    breakers.answered(route, 1)
    assert list(failing_deployments()) == []


class TestForgotten:
    """Notices of processes that have ended: nobody else would find out how things are now."""

    @pytest.fixture(autouse=True)
    def _forgotten(self, deployment: Deployment) -> None:
        publish(deployment.pk, 60, "http 500")
        now = datetime.now(UTC)
        rewrite(seen_at=(now - RENEWED).timestamp(), open_until=now.timestamp())

    def test_it_goes_on_while_the_list_of_models_does_not_come(self, upstream: FakeUpstream) -> None:
        upstream.set(models_fault="http_503")
        for _ in range(2):
            (condition,) = failing_deployments()
            assert "HTTP 503" in condition.text
        assert [request.path for request in upstream.requests] == ["/v1/models"]

    def test_it_is_over_when_it_does(self) -> None:
        assert list(failing_deployments()) == []
        assert failing() == []

    def test_it_is_over_where_nothing_is_served(self, upstream: FakeUpstream, deployment: Deployment) -> None:
        Deployment.objects.filter(pk=deployment.pk).update(is_enabled=False)
        catalog.forget()
        assert list(failing_deployments()) == []
        assert upstream.requests == []

    def test_it_goes_on_where_the_credit_was_used_up(self, upstream: FakeUpstream) -> None:
        """A list of models costs nothing, and so says nothing of it."""
        rewrite(cause=f"{CREDIT_USED_UP} (http 402)")
        assert len(list(failing_deployments())) == 1
        assert upstream.requests == []

    def test_it_is_deleted_after_a_long_time(self) -> None:
        rewrite(seen_at=(datetime.now(UTC) - STILL_FAILING).timestamp())
        assert failing() == []
        assert not redis_client(settings.REDIS_URL).exists(NOTICES)


def test_it_alerts_of_credit_that_is_used_up_by_itself(deployment: Deployment, breakers: Breakers) -> None:
    """It began as another failure, maybe, and operators have to do something else about it."""
    publish(deployment.pk, 30, "http 500")
    breakers.pause(route_of(deployment), 300, f"{CREDIT_USED_UP} (http 402)")
    (condition,) = failing_deployments()
    assert condition.subject == f"credit:{deployment.pk}"
    assert condition.title == "openai has no credit left for small"
    breakers.answered(route_of(deployment), 1)
    assert list(failing_deployments()) == []


def test_it_ends_no_incident_while_the_state_store_is_away(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can read then whether the breaker has closed."""

    def away() -> object:
        raise RedisConnectionError

    publish(deployment.pk, 60, "http 500")
    incidents_update(list(failing_deployments()))
    monkeypatch.setattr("inference.upstream.breaker.state_store", away)
    incidents_update(list(failing_deployments()))
    (incident,) = Alert.objects.filter(ended_at=None)
    assert incident.subject == f"breaker:{deployment.pk}"
    monkeypatch.undo()
    publish(deployment.pk, None)
    incidents_update(list(failing_deployments()))
    assert not Alert.objects.filter(ended_at=None).exists()
