"""The first line of the dashboard: the state of the platform in one sentence, and links to the next steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlencode

from django.conf import settings
from django.db.models import Count, Sum
from django.urls import reverse

from core.formats import count, percent
from monitoring.models import OUTCOMES, Alert, Outcome, RequestRecord
from operations.alerts.groups import BEFORE, AlertGroup, Link, group_of
from operations.dashboard.data import Reading
from operations.dashboard.query import DashboardQuery
from operations.dashboard.sections import Lag
from operations.deployments import DeploymentState

GOOD, WARNING, BAD = "good", "warning", "bad"
#: Failed records that are counted at most for the sentence about an outage.
COUNTED = 10_000
SPANS = {"1h": "in the last hour", "24h": "in 24 h", "7d": "in 7 days", "30d": "in 30 days"}
LOG = "admin:monitoring_requestrecord_changelist"


@dataclass(frozen=True, slots=True)
class Status:
    """The state in one sentence, its tone, and the next steps."""

    tone: str
    text: str
    links: list[Link] = field(default_factory=list)


def platform_status(
    asked: DashboardQuery,
    reading: Reading,
    deployments: Sequence[DeploymentState],
    incidents: Sequence[AlertGroup],
    lag: Lag,
    now: datetime,
    ended: AlertGroup | None = None,
) -> Status:
    """Return the most important of: an outage, an open incident, figures that lag, deployments to look at, all well.

    The last names also the provider's outage that `ended` in the span.
    """
    failing = [each for each in deployments if each.is_failing]
    if failing:
        return _outage(failing, deployments, incidents, now)
    if incidents:
        group, more = incidents[0], len(incidents) - 1
        text = f"{group.title}, since {clock(group.since, now)}"
        if group.lead.kind in (Alert.Kind.ERRORS, Alert.Kind.PROVIDER):
            text += f": {failures_since(group.since - BEFORE)}"
        text += f"; {_number(more, 'more incident')}" if more else ""
        return Status(BAD, f"{text}.", [*group.links, _alert_link(group)])
    if lag.is_late:
        return Status(WARNING, f"The figures are late: {lag.text}", [("Health checks", reverse("health"))])
    troubled = [each for each in deployments if each.is_troubled]
    if troubled:
        text = f"{_number(len(troubled), 'deployment')} to look at: {troubled[0].provider}/{troubled[0].name}"
        return Status(WARNING, f"{text} ({troubled[0].trouble}).", [("Deployment", troubled[0].url)])
    return _calm(asked, reading, ended, now)


def outage_ended(asked: DashboardQuery) -> AlertGroup | None:
    """Return the newest outage of a provider that ended in the span; None if there was none."""
    over = Alert.objects.filter(kind=Alert.Kind.PROVIDER, ended_at__range=(asked.span.begin, asked.span.end))
    newest = over.order_by("-ended_at").first()
    return group_of(newest) if newest else None


def _calm(asked: DashboardQuery, reading: Reading, ended: AlertGroup | None, now: datetime) -> Status:
    """Return the sentence for a platform without an open incident."""
    total, span = reading.total, SPANS.get(asked.name, "in this range")
    failures = (_number(total.failed, "failed request"), reverse(LOG) + asked.log_query(status="failed"))
    filtered = " with these filters" if asked.filters else ""
    if not total.requests:
        return Status(GOOD, f"All well: no requests {span}{filtered}.")
    share = total.failed / total.requests
    sentence = f"{_number(total.requests, 'request')} {span}{filtered}, {percent(share)} failed."
    links = [failures] if total.failed else []
    if ended is not None:
        until = max((alert.ended_at for alert in ended.alerts if alert.ended_at), default=now)
        sentence += f" {ended.title}, from {clock(ended.since, now)} to {clock(until, now)}."
        links.append(_alert_link(ended))
    if share * 100 >= settings.ALERT_ERROR_RATE:
        return Status(WARNING, f"No incident is open now, but many requests failed: {sentence}", links)
    return Status(GOOD, f"All well{' now' if ended else ''}: {sentence}", links)


def _outage(
    failing: Sequence[DeploymentState],
    deployments: Sequence[DeploymentState],
    incidents: Sequence[AlertGroup],
    now: datetime,
) -> Status:
    """Return the sentence for the provider with the most failing deployments."""
    names = [each.provider for each in failing]
    provider = max(names, key=names.count)
    own = [each for each in failing if each.provider == provider]
    is_all = len(own) == sum(each.provider == provider and each.is_enabled for each in deployments)
    since = min((each.open_since for each in own if each.open_since), default=None)
    cause = next((f" ({each.cause})" for each in own if each.cause), "")
    models = sorted({each.model for each in own})
    begun = f" since {clock(since, now)}" if since else ""
    what = f"has been down{begun}" if is_all and begun else "is down" if is_all else f"is failing{begun}"
    # Calls failed before the breaker opened. The minute is that of the link, so that the log has as many.
    begin = ((since or now) - timedelta(minutes=1)).replace(second=0, microsecond=0)
    text = f"{provider} {what}{cause}: {_number(len(models), 'model')} affected, {failures_since(begin, models)}."
    if others := sorted(set(names) - {provider}):
        text += f" Also failing: {', '.join(others)}."
    asked = {"status": "failed", **({"model": models[0]} if len(models) == 1 else {})}
    links = [
        ("Failed requests", f"{reverse(LOG)}?{urlencode({'from': f'{begin:%Y-%m-%dT%H:%MZ}'} | asked)}"),
        (f"Deployment {own[0].provider}/{own[0].name}", own[0].url)
        if len(own) == 1
        else (f"{len(own)} deployments", "#dash-breakers"),
    ]
    group = next((each for each in incidents if each.cause == f"provider:{provider}"), None)
    return Status(BAD, text, [*links, *([_alert_link(group)] if group else [])])


def failures_since(since: datetime, models: Sequence[str] = ()) -> str:
    """Return how many requests (for models) have failed since a time, and of how many accounts: COUNTED at most."""
    failed = RequestRecord.objects.filter(OUTCOMES[Outcome.FAILED], admitted_at__gte=since)
    failed = failed.filter(model__in=models) if models else failed
    newest = failed.order_by("-admitted_at", "-pk")[:COUNTED]
    sums = newest.aggregate(requests=Sum("count"), rows=Count("pk"), accounts=Count("account_id", distinct=True))
    if not sums["requests"]:
        return "no request failed"
    at_least = "at least " if sums["rows"] == COUNTED else ""
    return f"{at_least}{_number(sums['requests'], 'request')} from {_number(sums['accounts'], 'account')} failed"


def clock(at: datetime, now: datetime) -> str:
    """Format a time in UTC, with the day unless it is today."""
    return f"{at:%H:%M} UTC" if at.date() == now.date() else f"{at:%-d %b %H:%M} UTC"


def _number(number: int, what: str) -> str:
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


def _alert_link(group: AlertGroup) -> Link:
    return ("Alert", reverse("admin:monitoring_alert_change", args=[group.lead.pk]))
