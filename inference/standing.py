"""How deployments stand, for the admin: those of the database, with what breakers, probes and alerts know of them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from django.db.models import Case, F, QuerySet, When
from django.urls import reverse
from django.utils import timezone

from inference.catalog import catalog
from inference.models import BreakerNotice, Deployment, Provider
from inference.selectors import deployments_without_price
from inference.upstream.addresses import addresses
from inference.upstream.alerts import alert_subjects
from inference.upstream.breaker import BreakerReading, BreakerState, Reason, breakers
from inference.upstream.notices import failing
from monitoring.alerts.conditions import health_subject
from monitoring.dashboard.providers import DeploymentState
from monitoring.models import Alert

CLOSED = BreakerReading(BreakerState.CLOSED, None, 0)
WORSE_AND_WORSE = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)


def deployment_states() -> list[DeploymentState]:
    """List all deployments, as this process and all others know them.

    One whose address can't be reached is as good as open, one that failed and was not called since is on trial.
    """
    deployments = list(Deployment.objects.select_related("model", "provider"))
    known = _readings()
    unlisted = _unlisted()
    unpriced = set(deployments_without_price().values_list("pk", flat=True))
    states = [_state(each, known.get(each.pk, CLOSED), is_unlisted=each.pk == unlisted) for each in deployments]
    return [replace(state, is_priced=each.pk not in unpriced) for state, each in zip(states, deployments, strict=True)]


def secret_variables(provider: Provider) -> list[str]:
    """Name the environment variables that hold a provider's secrets."""
    headers = [value.removeprefix("$") for value in provider.extra_headers.values() if value.startswith("$")]
    return [name for name in (provider.api_key_variable, *headers) if name]


def missing_variables(provider: Provider) -> list[str]:
    """Name those of them that are not set on this server."""
    return [name for name in secret_variables(provider) if not os.environ.get(name)]


def failing_sign() -> tuple[QuerySet[Any, Any], str]:
    """Select the deployments that fail somewhere, for the dashboard to notice when that changes."""
    is_kept_away = When(open_until__gt=timezone.now(), then=F("open_until"))
    return failing().annotate(kept_away_until=Case(is_kept_away)), "kept_away_until"


def _readings() -> dict[int, BreakerReading]:
    """Tell how each deployment stands that is not closed: as the process that keeps calls away from it knows."""
    known = {notice.deployment_id: _reading(notice) for notice in failing()}
    for pk, reading in [*breakers.snapshot().items(), *addresses.snapshot().items()]:
        other = known.get(pk, CLOSED)
        worse = max(other, reading, key=lambda each: WORSE_AND_WORSE.index(each.state))
        known[pk] = BreakerReading(worse.state, worse.reason, max(other.accounts, reading.accounts))
    return known


def _reading(notice: BreakerNotice) -> BreakerReading:
    is_open = notice.open_until > timezone.now()
    state = BreakerState.OPEN if is_open else BreakerState.HALF_OPEN
    return BreakerReading(state, Reason(notice.since, notice.cause), 0)


def _unlisted() -> int | None:
    """Name the deployment whose provider has an alert since its list of models does not come."""
    model = catalog.default()
    if model is None or not model.routes:
        return None
    alerts = Alert.objects.filter(subject=health_subject("llm"), ended_at=None)
    return model.routes[0].deployment_id if alerts.exists() else None


def _state(deployment: Deployment, reading: BreakerReading, *, is_unlisted: bool) -> DeploymentState:
    enabled = (deployment.is_enabled, deployment.model.is_enabled, deployment.provider.is_enabled)
    return DeploymentState(
        model=deployment.model.public_name,
        provider=deployment.provider.name,
        name=deployment.upstream_name,
        url=reverse("admin:inference_deployment_change", args=[deployment.pk]),
        is_enabled=all(enabled),
        state=str(reading.state),
        open_since=reading.reason.since if reading.reason else None,
        cause=reading.reason.cause if reading.reason else "",
        accounts=reading.accounts,
        alert_subjects=alert_subjects(deployment.pk),
        missing=", ".join(missing_variables(deployment.provider)),
        is_unlisted=is_unlisted,
    )
