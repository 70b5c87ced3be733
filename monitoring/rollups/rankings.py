"""Who had most: added up and put in order by the database, so that a page of few reads no more than it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

from django.db import connection
from django.db.models import F, Q, Sum

from monitoring.models import Rollup
from monitoring.rollups.periods import Period, compose, hour_of, hour_until
from monitoring.rollups.selectors import EVERYTHING, Scope, caller_names


@dataclass(frozen=True, slots=True)
class Rank:
    """What an account or (with a key) one of its keys used. Money is in nano-dollars, without `unpriced` requests."""

    account_id: int
    account: str
    key_id: int
    key: str
    requests: int
    failed: int
    tokens: int
    cost: int
    unpriced: int = 0


@dataclass(frozen=True, slots=True)
class Rankings:
    """The accounts and the keys with the highest cost; those of equal cost by requests, most first."""

    accounts: Sequence[Rank]
    keys: Sequence[Rank]


class _Sums(NamedTuple):
    account_id: int
    key_id: int
    spent: int
    asked: int
    tokens: int
    failed: int
    unpriced: int


#: The keys' rows are read once: what is added up by key is added up by account from there.
_RANKED = """
WITH sums AS ({sums})
SELECT * FROM (
    SELECT account_id, 0 AS key_id, SUM(spent) AS spent, SUM(asked) AS asked, SUM(tokens) AS tokens, SUM(failed),
        SUM(unpriced)
    FROM sums GROUP BY account_id ORDER BY SUM(spent) DESC, SUM(asked) DESC, account_id LIMIT %s
) AS accounts
UNION ALL SELECT * FROM (SELECT * FROM sums ORDER BY spent DESC, asked DESC, account_id, key_id LIMIT %s) AS keys
"""


def usage_rankings(*, begin: datetime, end: datetime, scope: Scope = EVERYTHING, limit: int = 5) -> Rankings:
    """List the accounts and keys that used most; `end` may lie ahead.

    Times are aware; the span is widened to whole hours. Names are those of now, or the last that were written down.
    """
    within = Q(*_stretches("k", begin, end), _connector=Q.OR)
    by_key = Rollup.objects.filter(within, **scope.columns).order_by().values_list("account_id", "key_id")
    sums, values = by_key.annotate(
        spent=Sum("cost"),
        asked=Sum("requests"),
        tokens=Sum(F("input_tokens") + F("output_tokens")),
        failed=Sum("requests", filter=Q(outcome=Rollup.Outcome.FAILED), default=0),
        unpriced=Sum("unpriced"),
    ).query.sql_with_params()
    with connection.cursor() as cursor:
        cursor.execute(_RANKED.format(sums=sums), [*values, limit, limit])
        found = [_Sums(*map(int, row)) for row in cursor.fetchall()]
    found.sort(key=lambda row: (-row.spent, -row.asked, row.account_id, row.key_id))  # a union promises no order
    accounts = caller_names("account", {row.account_id for row in found}, with_account=False)
    keys = caller_names("key", {row.key_id for row in found} - {0}, with_account=False)
    ranks = [
        Rank(
            account_id=row.account_id,
            account=accounts[row.account_id],
            key_id=row.key_id,
            key=keys.get(row.key_id, ""),
            requests=row.asked,
            failed=row.failed,
            tokens=row.tokens,
            cost=row.spent,
            unpriced=row.unpriced,
        )
        for row in found
    ]
    return Rankings([rank for rank in ranks if not rank.key_id], [rank for rank in ranks if rank.key_id])


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
