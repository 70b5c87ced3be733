"""The state of deployments for the admin: rows of the database combined with breakers, probes and alerts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import structlog
from django.urls import reverse
from redis.exceptions import RedisError

from core.formats import quantity
from inference.catalog import catalog
from inference.models import Deployment
from inference.selectors import RecentCalls, deployments_without_price, recent_calls
from inference.upstream.breaker import BreakerReading, BreakerState, breakers, failing
from monitoring.models import Alert
from operations.alerts.conditions import alert_subjects, health_subject, shown_cause


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
    recent: RecentCalls | None = None

    @property
    def is_failing(self) -> bool:
        """Return whether the deployment is enabled but its breaker is not closed."""
        return self.is_enabled and self.state != "closed"

    @property
    def is_troubled(self) -> bool:
        """Return whether the deployment is enabled but calls of any account don't go there or are likely to fail."""
        return self.is_failing or (self.is_enabled and bool(self.accounts or self.missing or self.is_unlisted))

    @property
    def trouble(self) -> str:
        """Return what is wrong with an enabled deployment, in a few words; "" if nothing is."""
        troubles = [
            f"{self.missing} is not set on this server" if self.missing else "",
            "the provider does not return its list of models" if self.is_unlisted else "",
            f"calls of {quantity(self.accounts, 'account')} fail" if self.accounts else "",
            "" if self.is_priced else "no price, so the cost of calls is unknown",
        ]
        return "; ".join(filter(None, troubles)) if self.is_enabled else ""


log = structlog.get_logger(__name__)
CLOSED = BreakerReading()
WORSE_AND_WORSE = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)


def deployment_states() -> list[DeploymentState]:
    """List all deployments: troubled ones first, then those without a price, disabled ones last.

    A deployment whose address can't be reached counts as open, one that failed and was not called since as half-open.
    """
    known, recent = _readings(), recent_calls()
    default = catalog.default()
    is_unlisted = Alert.objects.filter(subject=health_subject("llm"), ended_at=None).exists()
    unlisted = default.routes[0].deployment_id if is_unlisted and default and default.routes else None
    unpriced = set(deployments_without_price().values_list("pk", flat=True))
    states = []
    for each in Deployment.objects.select_related("model", "provider"):
        reading = known.get(each.pk, CLOSED)
        states.append(
            DeploymentState(
                model=each.model.public_name,
                provider=each.provider.name,
                name=each.upstream_name,
                url=reverse("admin:inference_deployment_change", args=[each.pk]),
                is_enabled=each.is_enabled and each.model.is_enabled and each.provider.is_enabled,
                state=str(reading.state),
                open_since=reading.since,
                cause=shown_cause(reading.cause),
                accounts=reading.accounts,
                alert_subjects=alert_subjects(each.pk),
                missing=", ".join(each.provider.missing_variables),
                is_unlisted=each.pk == unlisted,
                is_priced=each.pk not in unpriced,
                recent=recent.get((each.model.public_name, str(each))),
            )
        )
    return sorted(states, key=lambda state: (not state.is_troubled, state.is_priced, not state.is_enabled))


def _readings() -> dict[int, BreakerReading]:
    """Return the readings of deployments whose breaker is not closed in any process; the worst one counts.

    While the state store is down, those of this process alone.
    """
    found: list[tuple[int, BreakerReading]] = []
    try:
        for notice in failing():
            state = BreakerState.OPEN if notice.is_open else BreakerState.HALF_OPEN
            found.append((notice.deployment_id, BreakerReading(state, notice.since, notice.cause)))
    except RedisError as error:
        log.warning("breakers_not_read", cause=type(error).__name__)
    known: dict[int, BreakerReading] = {}
    for pk, reading in [*found, *breakers.snapshot().items()]:
        other = known.get(pk, CLOSED)
        worse = max(other, reading, key=lambda each: WORSE_AND_WORSE.index(each.state))
        known[pk] = replace(worse, accounts=max(other.accounts, reading.accounts))
    return known
