"""Who had most: added up and put in order by the database, so that a page of few reads no more than it shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby

from django.db.models import F, Q, Sum

from monitoring.models import Rollup
from monitoring.rollups.periods import Period, compose, hour_of, hour_until
from monitoring.rollups.selectors import EVERYTHING, Scope, caller_names


@dataclass(frozen=True, slots=True)
class Rank:
    """What an account or (with a key) one of its keys used. Money is in nano-dollars."""

    account_id: int
    account: str
    key_id: int
    key: str
    requests: int
    failed: int
    tokens: int
    cost: int


def usage_ranking(*, begin: datetime, end: datetime, by: str, scope: Scope = EVERYTHING, limit: int = 5) -> list[Rank]:
    """List the accounts or keys (`by`) with the highest cost; those of equal cost by requests, most first.

    Times are aware; the span is widened to whole hours. Names are those of now, or the last that were written down.
    """
    chosen = replace(scope, key_id=None) if by == "account" else scope
    within = Q(*_stretches(by[0], begin, end), _connector=Q.OR)
    rows = Rollup.objects.filter(within, **chosen.columns)
    most = (
        rows.order_by()
        .values("account_id", "key_id")
        .annotate(
            asked=Sum("requests"),
            spent=Sum("cost"),
            tokens=Sum(F("input_tokens") + F("output_tokens")),
            failed=Sum("requests", filter=Q(outcome=Rollup.Outcome.FAILED), default=0),
        )
        .order_by("-spent", "-asked", "account_id", "key_id")[:limit]
    )
    found = list(most)
    accounts = caller_names("account", {row["account_id"] for row in found}, with_account=False)
    keys = caller_names("key", {row["key_id"] for row in found} - {0}, with_account=False) if by == "key" else {}
    return [
        Rank(
            account_id=row["account_id"],
            account=accounts[row["account_id"]],
            key_id=row["key_id"],
            key=keys.get(row["key_id"], ""),
            requests=int(row["asked"]),
            failed=int(row["failed"]),
            tokens=int(row["tokens"]),
            cost=int(row["spent"]),
        )
        for row in found
    ]


def busiest_keys(*, begin: datetime, end: datetime, limit: int) -> list[int]:
    """List the ids of the keys with most requests, most first."""
    rows = Rollup.objects.filter(Q(*_stretches("k", begin, end), _connector=Q.OR)).order_by().values("key_id")
    most = rows.annotate(asked=Sum("requests")).order_by("-asked", "key_id")[:limit]
    return [row["key_id"] for row in most]


def _stretches(whose: str, begin: datetime, end: datetime) -> Iterator[Q]:
    """Select the periods that make up a span: months, days and hours, each in as few stretches as there are."""
    periods = compose(hour_of(begin), hour_until(end))
    for period, alike in groupby(periods, key=lambda each: each[0]):
        starts = [start for _, start in alike]
        yield Q(grain=whose + Period(period), start__range=(starts[0], starts[-1]))
