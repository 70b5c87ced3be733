"""How deployments stand, for the admin's dashboard: those of the database, with what breakers know of them."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.urls import reverse
from django.utils import timezone

from inference.models import BreakerNotice, Deployment
from inference.upstream.addresses import addresses
from inference.upstream.breaker import BreakerReading, BreakerState, breakers
from inference.upstream.notices import open_anywhere
from monitoring.dashboard.providers import DeploymentState

CLOSED = BreakerReading(BreakerState.CLOSED, None, 0)


def deployment_states() -> list[DeploymentState]:
    """List all deployments. A breaker that is open in another process is told as open, without since when.

    One whose address can't be reached is as good as open.
    """
    deployments = list(Deployment.objects.select_related("model", "provider"))
    elsewhere = open_anywhere([deployment.pk for deployment in deployments])
    known = breakers.snapshot()
    for pk, since in addresses.snapshot().items():
        known[pk] = BreakerReading(BreakerState.OPEN, since, known.get(pk, CLOSED).accounts)
    return [_state(each, known.get(each.pk, CLOSED), is_open=each.pk in elsewhere) for each in deployments]


def open_breakers_sign() -> tuple[QuerySet[Any, Any], str]:
    """Select the breakers that are open somewhere, for the dashboard to notice when that changes."""
    return BreakerNotice.objects.filter(open_until__gt=timezone.now()), "open_until"


def _state(deployment: Deployment, reading: BreakerReading, *, is_open: bool) -> DeploymentState:
    state = reading.state
    if is_open and state is BreakerState.CLOSED:
        state = BreakerState.OPEN
    enabled = (deployment.is_enabled, deployment.model.is_enabled, deployment.provider.is_enabled)
    return DeploymentState(
        model=deployment.model.public_name,
        provider=deployment.provider.name,
        name=deployment.upstream_name,
        url=reverse("admin:inference_deployment_change", args=[deployment.pk]),
        is_enabled=all(enabled),
        state=str(state),
        open_since=reading.open_since,
        accounts=reading.accounts,
    )
