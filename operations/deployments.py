"""Where answers come from, as the room that knows tells: deployments and how their breakers stand.

How deployments stand, for the admin: those of the database, with what breakers, probes and alerts know of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.db.models import Case, F, QuerySet, When
from django.urls import reverse
from django.utils import timezone

from inference.catalog import catalog
from inference.models import BreakerNotice, Deployment
from inference.selectors import deployments_without_price, missing_variables
from inference.upstream.breaker import BreakerReading, BreakerState, Reason, addresses, breakers, failing
from monitoring.models import Alert
from operations.alerts.conditions import alert_subjects, health_subject


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """A deployment: `state` is closed, open or half_open, `open_since` when it began to fail, and `cause` how.

    `accounts` counts those whose own calls fail there so often that the breaker is open for them alone.
    `alert_subjects` are those of alerts while it fails, `missing` names the variables of secrets that are not set, and
    `is_unlisted` says that there is an alert since its provider does not answer with its list of models. What
    calls cost where it is not `is_priced` is unknown.
    """

    model: str
    provider: str
    name: str
    url: str
    is_enabled: bool
    state: str
    open_since: datetime | None
    accounts: int
    cause: str = ""
    alert_subjects: tuple[str, ...] = ()
    missing: str = ""
    is_unlisted: bool = False
    is_priced: bool = True

    @property
    def is_failing(self) -> bool:
        """Say whether calls are kept away that should go there."""
        return self.is_enabled and self.state != "closed"

    @property
    def is_troubled(self) -> bool:
        """Say whether somebody's calls don't go there although they should, or are likely to fail."""
        return self.is_failing or (self.is_enabled and bool(self.accounts or self.missing or self.is_unlisted))


CLOSED = BreakerReading(BreakerState.CLOSED, None, 0)
WORSE_AND_WORSE = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)


def deployment_states() -> list[DeploymentState]:
    """List all deployments: those in trouble first, then those without a price."""
    return sorted(_states(), key=lambda state: (not state.is_troubled, state.is_priced, not state.is_enabled))


def _states() -> list[DeploymentState]:
    """List all deployments, as this process and all others know them.

    One whose address can't be reached is as good as open, one that failed and was not called since is on trial.
    """
    deployments = list(Deployment.objects.select_related("model", "provider"))
    known = _readings()
    unlisted = _unlisted()
    unpriced = set(deployments_without_price().values_list("pk", flat=True))
    states = [_state(each, known.get(each.pk, CLOSED), is_unlisted=each.pk == unlisted) for each in deployments]
    return [replace(state, is_priced=each.pk not in unpriced) for state, each in zip(states, deployments, strict=True)]


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
