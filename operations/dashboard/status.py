"""The first line of the dashboard: the state of the platform in one sentence, and links to the next steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Q
from django.urls import reverse

from core.formats import clock_text, percent, quantity, span_text
from monitoring.models import OUTCOMES, Alert, Outcome
from monitoring.rollups.figures import Figures
from operations.alerts.groups import AlertGroup, Link, affected, affected_records, group_of, log_of, log_url, newest
from operations.dashboard.data import Reading
from operations.dashboard.query import DashboardQuery
from operations.dashboard.sections import Lag
from operations.deployments import DeploymentState

GOOD, WARNING, BAD = "good", "warning", "bad"
SPANS = {"1h": "in the last hour", "24h": "in the last 24 h", "7d": "in the last 7 days", "30d": "in the last 30 days"}
#: A share of failed requests below which all is well.
FEW = 0.01
LOG = "admin:monitoring_requestrecord_changelist"


@dataclass(frozen=True, slots=True)
class Status:
    """The state in one sentence, its tone, the next steps, and a sentence about an outage that is over."""

    tone: str
    text: str
    links: list[Link] = field(default_factory=list)
    detail: str = ""


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

    The last has also a sentence about the provider's outage that `ended` in the span.
    """
    failing = [each for each in deployments if each.is_failing]
    if failing:
        return _outage(failing, deployments, incidents, now)
    if incidents:
        group, more = incidents[0], len(incidents) - 1
        text = f"{group.title}, since {clock_text(group.since, now)}"
        if "status" in group.filters:
            text += f"; {affected(affected_records(group))} failed"
        text += f"; {quantity(more, 'more incident')}" if more else ""
        return Status(BAD, f"{text}.", [*group.links, _alert_link(group)])
    if lag.is_late:
        return Status(WARNING, f"The figures are late: {lag.text}", [("Health checks", reverse("health"))])
    troubled = [each for each in deployments if each.is_troubled]
    if troubled:
        text = f"{quantity(len(troubled), 'deployment')} to look at: {troubled[0].provider}/{troubled[0].name}"
        return Status(WARNING, f"{text} ({troubled[0].trouble}).", [("Deployment", troubled[0].url)])
    return _calm(asked, reading, ended, now)


def outage_ended(asked: DashboardQuery) -> AlertGroup | None:
    """Return the newest outage of a provider that ended in the span; None if there was none."""
    over = Alert.objects.filter(kind=Alert.Kind.PROVIDER, ended_at__range=(asked.span.begin, asked.span.end))
    last = over.order_by("-ended_at").first()
    return group_of(last) if last else None


def _calm(asked: DashboardQuery, reading: Reading, ended: AlertGroup | None, now: datetime) -> Status:
    """Return the sentence for a platform without an open incident; after an outage, about the requests since then."""
    total, span, since = reading.total, SPANS.get(asked.name, "in this range"), None
    links, detail = [], ""
    if total.failed:
        links.append((quantity(total.failed, "failed request"), reverse(LOG) + asked.log_query(status="failed")))
    if ended is not None:
        detail = (
            f"{span_text(ended.since, ended.until, now)}: {ended.title}; {affected(affected_records(ended))} failed."
        )
        links += [("Failed requests of the outage", log_url(ended)), _alert_link(ended)]
        since = next((start for start in asked.span.starts() if start >= (ended.until or now)), now)
        total = Figures.sum_of(figures for start, figures in reading.parts.items() if start >= since)
        span = f"since {clock_text(since, now)}"
    text = f"{quantity(total.requests, 'request') if total.requests else 'no requests'} {span}"
    text += " with these filters" if asked.filters else ""
    text += f", {percent(total.failed / total.requests) if total.failed else 'none'} failed" if total.requests else ""
    if total.failed and total.failed * 100 >= settings.ALERT_ERROR_RATE * total.requests:
        return Status(WARNING, f"No incident is open now, but many requests failed: {text}.", links, detail)
    is_well = total.failed < total.requests * FEW or not total.failed
    begin = ("All well" if is_well else "No incident is open") + (" now" if ended else "")
    return Status(GOOD, f"{begin}." if since == now else f"{begin}: {text}.", links, detail)


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
    begun = f" since {clock_text(since, now)}" if since else ""
    what = f"has been down{begun}" if is_all and begun else "is down" if is_all else f"is failing{begun}"
    # Calls failed before the breaker opened. The minute is that of the link, so that the log has as many.
    begin = ((since or now) - timedelta(minutes=1)).replace(second=0, microsecond=0)
    failed = affected(newest(OUTCOMES[Outcome.FAILED] & Q(model__in=models), begin))
    text = f"{provider} {what}{cause}: {quantity(len(models), 'model')} affected, {failed} failed."
    if others := sorted(set(names) - {provider}):
        text += f" Also failing: {', '.join(others)}."
    asked = {"status": "failed", "model": models[0] if len(models) == 1 else ""}
    links = [
        ("Failed requests", log_of(begin, None, asked)),
        (f"Deployment {own[0].provider}/{own[0].name}", own[0].url)
        if len(own) == 1
        else (f"{len(own)} deployments", "#dash-breakers"),
    ]
    group = next((each for each in incidents if each.cause == f"provider:{provider}"), None)
    return Status(BAD, text, [*links, *([_alert_link(group)] if group else [])])


def _alert_link(group: AlertGroup) -> Link:
    return ("Alert", reverse("admin:monitoring_alert_change", args=[group.lead.pk]))
