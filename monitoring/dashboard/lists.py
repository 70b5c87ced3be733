"""The sections that are lists: who had most, what failed lately, and what waits for the ingester."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import structlog
from django.db.models import QuerySet
from redis.exceptions import RedisError

from accounts.models import Account
from monitoring.alerts.budgets import LEVELS, level_of, topic_of
from monitoring.backlog import ingest_backlog
from monitoring.dashboard.asked import Asked
from monitoring.dashboard.formats import count, duration, known_money, percent
from monitoring.health import LAG_SECONDS
from monitoring.log_export import Selection
from monitoring.models import Alert, RequestRecord, Rollup
from monitoring.outcomes import OUTCOMES, Outcome
from monitoring.rollups.periods import hour_of, moment_of
from monitoring.rollups.rankings import Rank, usage_rankings

SHOWN = 5
RECENT = 10
#: Names that a filter suggests; others can be typed.
SUGGESTED = 200

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RankRow:
    """An account or a key with what it used: texts for reading, the dashboard's query for it alone, and the log's."""

    name: str
    query: str
    log_query: str
    requests: str
    failed: str
    tokens: str
    cost: str


@dataclass(frozen=True, slots=True)
class Lag:
    """What waits for the ingester, in words; `is_late` when that is more than a while."""

    text: str
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Most:
    """Who cost most in the span. Where one key is looked at, no account is listed.

    `since` is where that begins if it is before the span does: callers are told by whole hours.
    """

    accounts: list[RankRow]
    keys: list[RankRow]
    since: datetime | None


def who_had_most(asked: Asked) -> Most:
    """List the accounts and the keys that cost most in the span."""
    span = asked.span
    found = usage_rankings(begin=span.begin, end=span.reach, scope=asked.scope, limit=SHOWN)
    hour = moment_of(hour_of(span.begin))
    return Most(
        accounts=[] if asked.scope.key_id else [_rank_row(asked, rank) for rank in found.accounts],
        keys=[_rank_row(asked, rank) for rank in found.keys],
        since=hour if hour < span.begin else None,
    )


def _rank_row(asked: Asked, rank: Rank) -> RankRow:
    whose = {"account": rank.account, **({"key": rank.key} if rank.key else {})}
    return RankRow(
        name="/".join(whose.values()),
        query=asked.query(**whose),
        log_query=asked.log_query(**whose),
        requests=count(rank.requests),
        failed=percent(rank.failed / rank.requests) if rank.failed else "0",
        tokens=count(rank.tokens),
        cost=known_money(rank.cost, rank.unpriced),
    )


def recent_failures(asked: Asked) -> list[RequestRecord]:
    """Read the newest records of the span that ended with 5xx, by their own index."""
    return list(_failures(asked).order_by("-admitted_at", "-pk")[:RECENT])


def _failures(asked: Asked) -> QuerySet[RequestRecord]:
    chosen = Selection(asked.span.begin, asked.span.end, asked.scope)
    return chosen.records().filter(OUTCOMES[Outcome.FAILED])


def open_alerts(*, but: Collection[str] = ()) -> list[Alert]:
    """Read the newest alerts whose episode goes on, those on budgets last; of a budget's levels the highest.

    `but`: not those of these subjects.
    """
    going_on = Alert.objects.filter(ended_at=None).exclude(subject__in=but).order_by("-pk")
    of_service = going_on.exclude(kind=Alert.Kind.BUDGET)[:RECENT]
    rising = sorted(
        going_on.filter(kind=Alert.Kind.BUDGET)[: RECENT * len(LEVELS)], key=lambda alert: level_of(alert.subject)
    )
    highest = {topic_of(alert.subject): alert for alert in rising}.values()
    return [*of_service, *sorted(highest, key=lambda alert: -alert.pk)][:RECENT]


def ingest_lag() -> Lag:
    """Say how many records wait, and how long the oldest has."""
    try:
        backlog = ingest_backlog()
    except RedisError as error:
        log.warning("backlog_unknown", cause=type(error).__name__)
        return Lag("Redis is away: how many records wait to be counted is unknown.", is_late=True)
    if not backlog.records:
        return Lag("Every record is counted.")
    waiting = "1 record waits" if backlog.records == 1 else f"{count(backlog.records)} records wait"
    text = f"{waiting} to be counted, the oldest for {duration(backlog.seconds)}."
    return Lag(text, is_late=backlog.seconds > LAG_SECONDS)


def suggestions() -> dict[str, list[str]]:
    """Name what the filters may be set to: accounts, models and endpoints."""
    used = Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_MONTH).order_by()
    pairs = set(used.values_list("model", "endpoint").distinct()[:SUGGESTED])
    return {
        "account": list(Account.objects.values_list("name", flat=True)[:SUGGESTED]),
        "model": sorted({model for model, _ in pairs if model}),
        "endpoint": sorted({endpoint for _, endpoint in pairs}),
    }
