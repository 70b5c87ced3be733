"""The admin's page of one request: its story, what surrounds it, and links to what it is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.apps import apps
from django.db.models import Model, Q, Sum
from django.http import HttpRequest
from django.utils import timezone

from accounts.admin.base import change_url
from accounts.limits.types import LIMITS, LimitName
from accounts.models import Account, ApiKey
from accounts.selectors import account_titles, api_key_makers
from core.formats import NOTHING, clock_text, count, exact_money, milliseconds, money, quantity, utc_text
from core.keyset import Place, stretch
from core.money import nano
from monitoring.models import Alert, Outcome, RequestContent, RequestRecord, outcome_of
from monitoring.payload_log import content_of
from monitoring.rollups.periods import MINUTE, QUARTER, datetime_of, floor
from monitoring.rollups.queries import requests_by_outcome
from monitoring.stories import MESSAGES, Attempt, advice, attempts_of, attempts_with_times, headline, stages_of

#: Requests of the same key that are listed before and after, failures of the same minute, and alerts.
NEIGHBOURS, FAILURES, ALERTS = 3, 5, 5
#: What to open next, by error code.
STEPS = {
    **dict.fromkeys(("upstream_failed", "upstream_busy", "upstream_timeout"), ("Provider", "Model")),
    **dict.fromkeys(("scope_denied", "address_denied", "bound_exceeds_limit"), ("Key",)),
    **dict.fromkeys(("model_not_found", "price_unknown"), ("Model",)),
}
#: What is counted, as the rest of a limit's amount.
UNITS = {
    LimitName.REQUESTS_PER_MINUTE: "requests per minute",
    LimitName.TOKENS_PER_MINUTE: "tokens per minute",
    LimitName.CONCURRENT_REQUESTS: "concurrent calls",
    LimitName.MONTHLY_TOKENS: "tokens a month",
    LimitName.MONTHLY_COST: "a month",
}
RATE_LIMITED = "rate_limited"
TEST_IT = "Test the provider on its page. A second deployment of the model would take its calls."
#: Deployments of a provider whose alerts are searched.
DEPLOYMENTS = 100
#: An alert that began so much later may be about this request: it is sent after some failures.
LATER = timedelta(minutes=10)


def story(request: HttpRequest, record: RequestRecord) -> dict[str, Any]:
    """Return the context of the page's template."""
    attempts = attempts_of(record)
    links = list(_links(request, record, attempts))
    steps = STEPS.get(record.error_code, ())
    may_see_alerts = request.user.has_perm("monitoring.view_alert")
    return {
        "record": record,
        "steps": [link for link in links if link[0] in steps and link[2]],
        "outcome": outcome_of(record.status),
        "headline": headline(record),
        "advice": (_outage(record, attempts) if may_see_alerts else "") or advice(record),
        "limits": (limits := list(_limits_now(request, record))),
        "proof": _proof(record, has_account_limit=any(kind == "account" for _, kind, *_ in limits)),
        "stages": stages_of(record),
        "attempts": attempts_with_times(record),
        "links": links,
        "alerts": list(_alerts(record)) if may_see_alerts else [],
        "neighbours": [(each, "") for each in _neighbours(record)],
        "around": _around(record),
        "details": _details(record),
        "facts": _facts(record),
        "content": _content(record) if request.user.has_perm("monitoring.view_requestcontent") else None,
    }


def _links(request: HttpRequest, record: RequestRecord, attempts: Sequence[Attempt]) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and URL of what the request was about, as far as it exists and the user may see it."""
    asked = next((each.provider for each in attempts if each.provider), "")
    provider = record.deployment.partition("/")[0] or asked
    # Named lazily: the app is above this one.
    for kind, name, model, condition in (
        ("Account", record.account_name, Account, Q(pk=record.account_id)),
        ("Key", record.key_name, ApiKey, Q(pk=record.key_id)),
        ("Model", record.model, apps.get_model("inference", "Model"), Q(public_name=record.model)),
        ("Provider", provider, apps.get_model("inference", "Provider"), Q(name=provider)),
    ):
        found = _found(request, model, condition) if name else None
        if name:
            yield kind, found.title if isinstance(found, Account) else name, change_url(found) if found else ""


def _found(request: HttpRequest, model: type[Model], condition: Q) -> Model | None:
    meta = model._meta
    if not request.user.has_perm(f"{meta.app_label}.view_{meta.model_name}"):
        return None
    return model._default_manager.filter(condition).first()


def _outage(record: RequestRecord, attempts: Sequence[Attempt]) -> str:
    """Return since when and until when the skipped deployment got no calls, according to its alert; "" if unknown."""
    skipped = next((each for each in attempts if each.skipped_since), None)
    if record.error_code != "upstream_busy" or skipped is None:
        return ""
    deployments = apps.get_model("inference", "Deployment").objects.filter(provider__name=skipped.provider)
    if skipped.model:
        deployments = deployments.filter(upstream_name=skipped.model)
    subjects = [f"breaker:{pk}" for pk in deployments.values_list("pk", flat=True)[:DEPLOYMENTS]]
    alerts, at = Alert.objects.filter(subject__in=subjects), record.admitted_at
    then = alerts.filter(Q(ended_at=None) | Q(ended_at__gte=at), began_at__lte=at + LATER).order_by("began_at").first()
    if then is None:
        return ""
    status = skipped.cause.removeprefix("http ")
    why = f"it kept answering {status}" if status != skipped.cause else f"it failed ({skipped.cause})"
    if then.ended_at is None:
        return f"{skipped.provider} has not been called since {skipped.skipped_since} UTC because {why}. {TEST_IT}"
    until = clock_text(then.ended_at, at)
    told = f"{skipped.provider} was not called from {skipped.skipped_since} to {until} because {why}."
    if alerts.filter(ended_at=None).exists():
        return f"{told} It is failing again now. {TEST_IT}"
    return f"{told} It has recovered: nothing to do now. To be safe next time, add a second deployment of the model."


def _limits_now(request: HttpRequest, record: RequestRecord) -> Iterator[tuple[str, str, str, str]]:
    """Yield amount, kind, name and URL of each limit of today's settings that can lead to the record's refusal.

    Budgets for one model are left out.
    """
    names = [name for name, limit in LIMITS.items() if limit.error.code == record.error_code]
    may_see_key = request.user.has_perm("accounts.view_apikey")
    keys = ApiKey.objects.select_related("account", "tier").filter(pk=record.key_id)
    key = keys.first() if names and may_see_key else None
    if key is None:
        return
    for name in names:
        field = LIMITS[name].field
        holders: list[tuple[str, Model]] = [("key", key), ("account", key.account)]
        limit = getattr(key, field, None)
        if not LIMITS[name].is_budget:
            is_over = key.overrides_until is not None and key.overrides_until <= timezone.now()
            limit = None if is_over else getattr(key, f"{field}_override")
            if limit is None:
                holders[0], limit = ("tier", key.tier), getattr(key.tier, field)
        for (kind, holder), amount in zip(holders, (limit, getattr(key.account, field)), strict=True):
            if amount is not None:
                is_seen = request.user.has_perm(f"accounts.view_{holder._meta.model_name}")
                shown = money(nano(amount)) if name == LimitName.MONTHLY_COST else f"{amount:,}"
                yield f"{shown} {UNITS[name]}", kind, str(holder), change_url(holder) if is_seen else ""


def _proof(record: RequestRecord, *, has_account_limit: bool) -> tuple[str, str] | None:
    """Return the requests of the minute before a refusal by the rate, and the query of the log that lists them."""
    if record.error_code != RATE_LIMITED:
        return None
    end, minute = record.admitted_at, record.admitted_at.replace(second=0, microsecond=0)
    begin = end - MINUTE
    own = RequestRecord.objects.filter(key_id=record.key_id)
    # What is forbidden to a key is refused before it is counted.
    counted = ~Q(error_code=RATE_LIMITED) & ~Q(status=403)
    before = counted & Q(admitted_at__gte=begin, admitted_at__lt=end)
    told = f"{quantity(own.filter(before).count(), 'request')} of this key"
    if has_account_limit:
        of_account = RequestRecord.objects.filter(before, account_id=record.account_id).count()
        told += f" and {count(of_account)} of the whole account"
    refused = own.filter(error_code=RATE_LIMITED, admitted_at__gte=minute, admitted_at__lt=minute + MINUTE)
    number = refused.aggregate(number=Sum("count"))["number"]
    after = own.filter(counted, admitted_at__gt=end, admitted_at__lt=end + LATER).order_by("admitted_at").first()
    again = f"; the next passed at {after.admitted_at:%H:%M:%S}" if after else ""
    names = {"account": record.account_name, "key": record.key_name}
    was = "was" if number == 1 else "were"
    refusals = f"{count(number)} {was} refused between {minute:%H:%M} and {minute + MINUTE:%H:%M}{again}"
    query = urlencode({**names, "from": begin.isoformat(), "until": end.isoformat()})
    return f"{told} passed in the minute to {end:%H:%M:%S}. Of this key, {refusals}.", f"?{query}"


def _alerts(record: RequestRecord) -> Iterator[Alert]:
    """Yield alerts that were open at the time of the request, or began soon after; of budgets, those that applied."""
    at, key = record.admitted_at, ApiKey.objects.filter(pk=record.key_id).first()
    keys = [key, *api_key_makers([key])[key.pk]] if key else []
    # A rotated key keeps its budgets, whose alerts are named by the first key.
    budgets = [f"budget:account:{record.account_id}:", *(f"budget:key:{each.limits_id}:" for each in keys)]
    own = Q(*(Q(subject__startswith=each) for each in budgets), _connector=Q.OR) | ~Q(kind=Alert.Kind.BUDGET)
    begun = Alert.objects.filter(own, began_at__lte=at + LATER).exclude(kind=Alert.Kind.TEST)
    yield from begun.filter(Q(ended_at=None) | Q(ended_at__gte=at)).order_by("-began_at")[:ALERTS]


def _neighbours(record: RequestRecord) -> list[RequestRecord]:
    """Return the requests of the same key around this one, the newest first."""
    own, place = RequestRecord.objects.filter(key_id=record.key_id), Place(record.admitted_at, record.pk)
    newer, older = (
        list(stretch(own, "admitted_at", place, is_newer=is_newer)[:NEIGHBOURS]) for is_newer in (True, False)
    )
    return [*newer[::-1], record, *older]


def _around(record: RequestRecord) -> dict[str, Any]:
    """Return what else the platform did then: other failures of the minute, and the outcomes of the quarter hour."""
    minute = record.admitted_at.replace(second=0, microsecond=0)
    failed = RequestRecord.objects.filter(status__gte=500, admitted_at__gte=minute, admitted_at__lt=minute + MINUTE)
    begin = floor(record.admitted_at, QUARTER)
    counts = {name: number for _, name, number in requests_by_outcome(begin=begin, end=begin + QUARTER, width=QUARTER)}
    failures = list(failed.exclude(pk=record.pk)[:FAILURES])
    titles = account_titles(each.account_name for each in failures)
    return {
        "failures": [(each, titles[each.account_name]) for each in failures],
        "requests": sum(counts.values()),
        "failed": counts.get(Outcome.FAILED, 0),
        "minute": _between(minute, minute + MINUTE),
        "quarter": _between(datetime_of(begin), datetime_of(begin + QUARTER)),
    }


def _between(begin: datetime, end: datetime) -> str:
    """Return the query of the log for a span of time."""
    return f"?from={begin:%Y-%m-%dT%H:%MZ}&until={end:%Y-%m-%dT%H:%MZ}"


def _facts(record: RequestRecord) -> str:
    """Return tokens, cost and cache in a line; empty for a request that used and saved nothing."""
    if not (record.input_tokens or record.output_tokens or record.saved_cost):
        return ""
    cached = f" ({count(record.cached_tokens)} cached by the provider)" if record.cached_tokens else ""
    cost = "cost unknown" if record.cost is None else money(nano(record.cost))
    saved = f"saved {money(nano(record.saved_cost))}" if record.saved_cost else ""
    tokens = f"{count(record.input_tokens)} tokens in{cached}, {count(record.output_tokens)} out"
    searches = f"web searches: {count(record.web_searches)}" if record.web_searches else ""
    return " · ".join(filter(None, [tokens, searches, cost, f"cache {record.cache}" if record.cache else "", saved]))


def _details(record: RequestRecord) -> list[tuple[str, str]]:
    """Return the record's fields as names and texts."""
    message = MESSAGES.get(record.error_code)
    remarks = [
        *(["the answer was interrupted"] if record.is_partial else []),
        *(["the provider billed more than the bound"] if record.is_overrun else []),
    ]
    cost = "unknown: the model has no price" if record.cost is None else exact_money(nano(record.cost))
    return [
        ("Time", utc_text(record.admitted_at, seconds=True)),
        ("Status", f"{record.status} {record.error_code}".strip()),
        ("Error", (f"{record.error_code}: {message}" if message else record.error_code) or NOTHING),
        ("Endpoint", record.endpoint),
        ("Model", record.model or NOTHING),
        ("Deployment", record.deployment or NOTHING),
        ("Latency", milliseconds(record.latency_ms)),
        ("First token", milliseconds(record.first_token_ms)),
        ("Calls to providers", f"{record.attempts}"),
        ("Cache", record.cache or NOTHING),
        ("Input tokens", f"{record.input_tokens:,}"),
        ("Cached by the provider", f"{record.cached_tokens:,} read, {record.cache_write_tokens:,} written"),
        ("Output tokens", f"{record.output_tokens:,} ({record.reasoning_tokens:,} reasoning)"),
        ("Web searches", f"{record.web_searches:,}"),
        ("Service tier", record.service_tier or NOTHING),
        ("Cost", cost),
        ("Saved by the cache", exact_money(nano(record.saved_cost))),
        ("Usage reported by", record.usage_source or NOTHING),
        ("Requests in this record", f"{record.count:,}"),
        ("Remarks", "; ".join(remarks) or NOTHING),
        ("Failed attempts", record.failures or NOTHING),
        ("X-Request-ID", record.label),
        ("Revision", f"{record.revision}"),
    ]


def _content(record: RequestRecord) -> RequestContent | str:
    """Return the logged prompt and answer, or why there are none."""
    content = content_of(record.pk)
    if content is not None:
        return content
    logs = Account.objects.filter(pk=record.account_id, logs_content=True).exists()
    return "Not logged, or expired." if logs else "Not logged: content logging is off for this account."
