"""The state of deployments for the admin: rows of the database combined with breakers, probes and alerts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import structlog
from django.urls import reverse
from redis.exceptions import RedisError

from inference.catalog import catalog
from inference.models import Deployment
from inference.selectors import deployments_without_price, missing_variables
from inference.upstream.breaker import BreakerReading, BreakerState, Notice, breakers, failing
from monitoring.models import Alert
from operations.alerts.conditions import alert_subjects, health_subject


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """A deployment with the `state` of its breaker: closed, open or half_open.

    `open_since` is when it began to fail, and `cause` why. `accounts` is the number of accounts for which alone the
    breaker is open, because their own calls fail. `alert_subjects` are the subjects of alerts that it causes while it
    fails, `missing` names variables of secrets that are not set, `is_unlisted` is whether an alert is firing because
    its provider does not answer with its list of models, and `is_priced` whether the cost of its calls is known.
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
        """Return whether the deployment is enabled but its breaker is not closed."""
        return self.is_enabled and self.state != "closed"

    @property
    def is_troubled(self) -> bool:
        """Return whether the deployment is enabled but calls of any account don't go there or are likely to fail."""
        return self.is_failing or (self.is_enabled and bool(self.accounts or self.missing or self.is_unlisted))


log = structlog.get_logger(__name__)
CLOSED = BreakerReading()
WORSE_AND_WORSE = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)


def deployment_states() -> list[DeploymentState]:
    """List all deployments: troubled ones first, then those without a price, disabled ones last."""
    return sorted(_states(), key=lambda state: (not state.is_troubled, state.is_priced, not state.is_enabled))


def _states() -> list[DeploymentState]:
    """List all deployments with what this process and all others know of them.

    If its address can't be reached it counts as open; if it failed and was not called since, as half-open.
    """
    deployments = list(Deployment.objects.select_related("model", "provider"))
    known = _readings()
    unlisted = _unlisted()
    unpriced = set(deployments_without_price().values_list("pk", flat=True))
    states = [_state(each, known.get(each.pk, CLOSED), is_unlisted=each.pk == unlisted) for each in deployments]
    return [replace(state, is_priced=each.pk not in unpriced) for state, each in zip(states, deployments, strict=True)]


def _readings() -> dict[int, BreakerReading]:
    """Return the readings of deployments whose breaker is not closed in any process; the worst one counts."""
    published = [(notice.deployment_id, _reading(notice)) for notice in _published()]
    known: dict[int, BreakerReading] = {}
    for pk, reading in [*published, *breakers.snapshot().items()]:
        other = known.get(pk, CLOSED)
        worse = max(other, reading, key=lambda each: WORSE_AND_WORSE.index(each.state))
        known[pk] = replace(worse, accounts=max(other.accounts, reading.accounts))
    return known


def _published() -> list[Notice]:
    """Return what all processes have published; nothing while the state store is away."""
    try:
        return failing()
    except RedisError as error:
        log.warning("breakers_not_read", cause=type(error).__name__)
        return []


def _reading(notice: Notice) -> BreakerReading:
    state = BreakerState.OPEN if notice.is_open else BreakerState.HALF_OPEN
    return BreakerReading(state, notice.since, notice.cause)


def _unlisted() -> int | None:
    """Return the id of the default model's deployment if an alert on its provider's list of models is firing."""
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
        open_since=reading.since,
        cause=reading.cause,
        accounts=reading.accounts,
        alert_subjects=alert_subjects(deployment.pk),
        missing=", ".join(missing_variables(deployment.provider)),
        is_unlisted=is_unlisted,
    )
