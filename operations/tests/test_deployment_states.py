"""How deployments stand, for the dashboard."""

from __future__ import annotations

import pytest

from inference.catalog import Rates, _route
from inference.models import Deployment, Model, Provider
from inference.upstream import breaker
from inference.upstream.breaker import Breakers, breakers
from operations.deployments import deployment_states

pytestmark = pytest.mark.django_db


@pytest.fixture
def deployment() -> Deployment:
    """Make a deployment."""
    provider = Provider.objects.create(name="p", base_url="https://p.example/v1")
    return Deployment.objects.create(model=Model.objects.create(public_name="m"), provider=provider, upstream_name="u")


def test_it_tells_breakers_of_this_process_and_of_others(deployment: Deployment) -> None:
    (state,) = deployment_states()
    assert (state.model, state.provider, state.name, state.state, state.is_enabled) == ("m", "p", "u", "closed", True)
    assert not state.is_troubled
    elsewhere = Breakers()
    for account in range(breaker.FAILURES_TO_OPEN):
        elsewhere.failed(_route(deployment, Rates()), account)
    (state,) = deployment_states()
    assert state.state == "open"
    assert state.is_troubled
    for account in range(breaker.FAILURES_TO_OPEN):
        breakers.failed(_route(deployment, Rates()), account)
    (state,) = deployment_states()
    assert state.state == "open"
    assert state.open_since is not None
    elsewhere.forget()


def test_it_tells_an_address_that_can_t_be_reached(deployment: Deployment) -> None:
    breakers.eject(_route(deployment, Rates()))
    (state,) = deployment_states()
    assert (state.state, state.is_troubled) == ("open", True)
    assert state.open_since is not None
    breakers.answered(_route(deployment, Rates()), 1)
    assert deployment_states()[0].state == "closed"


def test_it_tells_what_is_switched_off(deployment: Deployment) -> None:
    Provider.objects.update(is_enabled=False)
    (state,) = deployment_states()
    assert not state.is_enabled
