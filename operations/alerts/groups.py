"""Alerts grouped by their cause: what they are about, and whose requests they affected.

What they are about are links: deployment, provider, account, key, and the request log of their time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlencode, urlsplit

from django.db.models import Count, Model, Q, QuerySet, Sum
from django.http import HttpRequest
from django.urls import resolve, reverse

from accounts.admin.base import change_url
from accounts.models import Account, ApiKey
from core.formats import quantity
from inference.catalog import catalog
from inference.models import Deployment, Price
from monitoring.models import OUTCOMES, Alert, Outcome, RequestRecord
from monitoring.rollups.periods import MINUTE
from operations.alerts.conditions import health_subject, level_of, outage_cause, outage_title, topic_of

#: A link: its text and its URL.
Link = tuple[str, str]
#: Resolved alerts of one cause are one incident if they began within this time.
TOGETHER = timedelta(hours=1)
PROVIDER, BREAKERS = "provider:", ("breaker:", "credit:")
#: Requests fail some time before the alert begins.
BEFORE = timedelta(minutes=10)
#: Records of affected requests that are counted at most.
COUNTED = 10_000
#: Models that a title names at most.
NAMED = 3
#: Alerts that are looked at for the group of one.
MOST = 200


@dataclass(slots=True)
class AlertGroup:
    """Alerts of one cause, links to what they are about, and the filters of the log for the requests they affected."""

    cause: str
    title: str = ""
    alerts: list[Alert] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    filters: dict[str, str] = field(default_factory=dict)

    @property
    def lead(self) -> Alert:
        """Return the newest alert, of a provider's the newest about a deployment."""
        return next((alert for alert in self.alerts if alert.subject.startswith(BREAKERS)), self.alerts[0])

    @property
    def is_resolved(self) -> bool:
        """Return whether no alert is open."""
        return all(alert.ended_at is not None for alert in self.alerts)

    @property
    def since(self) -> datetime:
        """Return when the first alert began."""
        return min(alert.began_at for alert in self.alerts)

    @property
    def until(self) -> datetime | None:
        """Return when the last alert ended; None if one is open."""
        ended = [alert.ended_at for alert in self.alerts if alert.ended_at is not None]
        return max(ended) if len(ended) == len(self.alerts) else None

    @property
    def begin(self) -> datetime:
        """Return since when requests may have been affected."""
        return (self.since - BEFORE).replace(second=0, microsecond=0)

    def takes(self, cause: str, alert: Alert) -> bool:
        """Return whether an alert of a cause belongs to this incident; failed requests belong to a failing provider."""
        is_open = self.lead.ended_at is None
        is_effect = alert.kind == Alert.Kind.ERRORS and self.cause.startswith(PROVIDER)
        if is_open != (alert.ended_at is None) or not (cause == self.cause or is_effect):
            return False
        is_long = alert.kind == Alert.Kind.BUDGET or (is_open and not is_effect)
        return is_long or abs(self.since - alert.began_at) < TOGETHER


@dataclass(frozen=True, slots=True)
class About:
    """What an alert's subject names: a deployment, an account or a key (None if it is deleted), and a model."""

    named: Model | None = None
    model: str = ""


#: By kind of object, what to read of it.
_QUERIES = {
    "deployment": Deployment.objects.select_related("provider", "model"),
    "account": Account.objects.all(),
    "key": ApiKey.objects.select_related("account"),
}


def group_alerts(alerts: Sequence[Alert]) -> list[AlertGroup]:
    """Group alerts, given newest first, by their causes; the groups are in the order of their newest alerts."""
    abouts = subjects_of(alerts)
    groups: list[AlertGroup] = []
    for alert in sorted(alerts, key=lambda each: each.kind == Alert.Kind.ERRORS):  # effects join their causes
        about = abouts[alert.pk]
        cause = _cause(alert, about)
        group = next((each for each in groups if each.takes(cause, alert)), None)
        if group is None:
            group = AlertGroup(cause)
            groups.append(group)
        group.alerts.append(alert)
    for group in groups:
        subjects = [abouts[alert.pk] for alert in group.alerts]
        number = len({str(each.named or each.model) for each in subjects if each.named or each.model})
        about = abouts[group.lead.pk]
        group.title = _title(group, about, subjects)
        group.filters = _filters(group, about, is_one=number == 1)
        group.links = _links(group, about, is_one=number == 1)
    places = {alert.pk: place for place, alert in enumerate(alerts)}
    return sorted(groups, key=lambda group: min(places[alert.pk] for alert in group.alerts))


def subjects_of(alerts: Iterable[Alert]) -> dict[int, About]:
    """Map the ids of alerts to what they are about, by at most one query each of deployments, accounts and keys."""
    parsed = {alert.pk: _parse(alert.subject) for alert in alerts}
    wanted: dict[str, set[int]] = {kind: {pk for each, pk, _ in parsed.values() if each == kind} for kind in _QUERIES}
    found = {kind: _QUERIES[kind].in_bulk(ids) if ids else {} for kind, ids in wanted.items()}
    return {alert: About(found.get(kind, {}).get(pk), model) for alert, (kind, pk, model) in parsed.items()}


def _parse(subject: str) -> tuple[str, int, str]:
    """Return the kind (a key of _QUERIES, or ""), the id and the model of an alert's subject."""
    kind, _, rest = subject.partition(":")
    if kind == "budget":
        owner, pk, rest = rest.split(":", 2)
        return owner, int(pk), rest.rsplit(":", 3)[0]
    if kind in ("breaker", "credit") and rest.isdecimal():
        return "deployment", int(rest), ""
    if subject == health_subject("llm") and (default := catalog.default()) and default.routes:
        return "deployment", default.routes[0].deployment_id, ""
    return "", 0, rest if kind == "price" else ""


def _cause(alert: Alert, about: About) -> str:
    if isinstance(about.named, Deployment):
        return f"{PROVIDER}{about.named.provider}"
    if alert.kind == Alert.Kind.PRICE:
        return "price"
    if alert.kind == Alert.Kind.BUDGET:  # the levels of one month
        return f"{topic_of(alert.subject)}:{alert.subject.rpartition(':')[2]}"
    return alert.subject


def _title(group: AlertGroup, about: About, subjects: Sequence[About]) -> str:
    """Return the title of a group, with the models that its alerts are about, or their number if there are many."""
    named, lead = about.named, group.lead
    models = {str(each.named.model) if isinstance(each.named, Deployment) else each.model for each in subjects} - {""}
    if len(models) > 1 and group.cause == "price":
        return f"{len(models)} models have no price"
    if isinstance(named, Deployment) and lead.subject.startswith(BREAKERS):
        what = ", ".join(sorted(models)) if len(models) <= NAMED else f"{len(models)} models"
        return outage_title(str(named.provider), what, outage_cause(lead), is_over=group.is_resolved)
    return max([lead, *group.alerts], key=lambda alert: level_of(alert.subject)).title


def _filters(group: AlertGroup, about: About, *, is_one: bool) -> dict[str, str]:
    """Return the filters of the request log for what a group affected, without its time; {} if it affects none."""
    named, model, kind = about.named, about.model, group.lead.kind
    if isinstance(named, ApiKey):
        return {"account": named.account.name, "key": named.name, "model": model}
    if isinstance(named, Account):
        return {"account": named.name, "model": model}
    if kind in (Alert.Kind.ERRORS, Alert.Kind.PROVIDER):
        return {"status": "failed", "model": str(named.model) if isinstance(named, Deployment) and is_one else ""}
    return {}


def _links(group: AlertGroup, about: About, *, is_one: bool) -> list[Link]:
    """List the pages that a group is about, and the request log of its time; of several, what they have in common."""
    named, kind = about.named, group.lead.kind
    requests = [("Failed requests" if "status" in group.filters else "Requests", log_url(group))]
    if isinstance(named, Deployment):
        provider = (f"Provider {named.provider}", change_url(named.provider))
        return [*requests, provider, *([(f"Deployment {named}", change_url(named))] if is_one else [])]
    if isinstance(named, ApiKey | Account):  # a budget of theirs
        name = f"{'Account' if isinstance(named, Account) else 'Key'} {named.title}"
        return [(name, change_url(named)), *requests, ("Change the budget", f"{change_url(named)}#general")]
    if kind == Alert.Kind.PRICE:
        query = f"?{urlencode({'q': about.model})}" if is_one else ""
        return [("Deployments", f"{_list(Deployment)}{query}"), ("Prices", _list(Price))]
    if group.filters:
        return [*requests, ("Deployments", _list(Deployment))]
    return [("Health checks", reverse("health"))] if kind in (Alert.Kind.INGEST, Alert.Kind.DEPENDENCY) else []


def log_url(group: AlertGroup, **filters: str) -> str:
    """Return the URL of the request log of a group's time with its filters, and more."""
    return log_of(group.begin, group.until, {**group.filters, **filters})


def log_of(begin: datetime, until: datetime | None, filters: Mapping[str, str]) -> str:
    """Return the URL of the request log from the minute of `begin` to that of `until` (included), with filters."""
    ends = {"from": f"{begin:%Y-%m-%dT%H:%MZ}"}
    if until is not None:
        ends["until"] = f"{until + MINUTE:%Y-%m-%dT%H:%MZ}"
    asked = {name: value for name, value in {**ends, **filters}.items() if value}
    return f"{reverse('admin:monitoring_requestrecord_changelist')}?{urlencode(asked)}"


@dataclass(frozen=True, slots=True)
class Affected:
    """Numbers of requests and of their accounts; at least, unless `is_all`."""

    requests: int
    accounts: int
    is_all: bool

    def __str__(self) -> str:
        if not self.requests:
            return "no request"
        at_least = "" if self.is_all else "at least "
        return f"{at_least}{quantity(self.requests, 'request')} from {quantity(self.accounts, 'account')}"


def newest(condition: Q, begin: datetime, until: datetime | None = None) -> QuerySet[RequestRecord]:
    """Return the records in the time of `log_of`: the newest COUNTED at most."""
    found = RequestRecord.objects.filter(condition, admitted_at__gte=begin)
    if until is not None:
        found = found.filter(admitted_at__lt=(until + MINUTE).replace(second=0, microsecond=0))
    return found.order_by("-admitted_at", "-pk")[:COUNTED]


def affected(records: QuerySet[RequestRecord]) -> Affected:
    """Count the requests of the `newest` records."""
    sums = records.aggregate(requests=Sum("count"), accounts=Count("account_name", distinct=True), records=Count("pk"))
    return Affected(sums["requests"] or 0, sums["accounts"], is_all=sums["records"] < COUNTED)


#: The requests that a used-up budget refused.
BUDGET_ERROR = "budget_exhausted"
REFUSED = Q(status=429, error_code=BUDGET_ERROR)
_COLUMNS = {"account": "account_name", "key": "key_name", "model": "model"}


def affected_records(group: AlertGroup) -> QuerySet[RequestRecord]:
    """Return the newest records that failed in the time of a group, or that a budget refused."""
    given = Q(**{_COLUMNS[name]: value for name, value in group.filters.items() if value and name in _COLUMNS})
    return newest(
        (OUTCOMES[Outcome.FAILED] if "status" in group.filters else REFUSED) & given, group.begin, group.until
    )


def group_of(alert: Alert) -> AlertGroup:
    """Return the group of an alert, with the alerts of its kind that began about the same time."""
    within = timedelta(days=31) if alert.kind == Alert.Kind.BUDGET else TOGETHER
    near = Alert.objects.filter(kind=alert.kind, began_at__range=(alert.began_at - within, alert.began_at + within))
    groups = group_alerts(list(near.order_by("-began_at", "-pk")[:MOST]))
    return next((group for group in groups if alert in group.alerts), None) or group_alerts([alert])[0]


def _list(model: type[Model]) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def allowed(request: HttpRequest, links: Iterable[Link]) -> list[Link]:
    """Return the links to pages that the user may see; those of the admin are named after their models."""

    def may_see(url: str) -> bool:
        app, _, rest = (resolve(urlsplit(url).path).url_name or "").partition("_")
        return not rest or request.user.has_perm(f"{app}.view_{rest.partition('_')[0]}")

    return [(text, url) for text, url in links if url.startswith("#") or may_see(url)]
