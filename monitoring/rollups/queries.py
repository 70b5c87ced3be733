"""Queries of the rollups: totals, series by time, rankings of accounts and keys, and the platform's last minutes.

None of them reads the log. Times are aware datetimes; `end` is excluded. Rollups are kept by the hour, so a span is
widened to whole hours. Rankings are summed and sorted by the database, which returns only the rows that are shown.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, tzinfo
from itertools import chain, groupby
from typing import Any, NamedTuple, TypeVar, cast

from django.db import connection
from django.db.models import BigIntegerField, F, Max, Q, QuerySet, Sum
from django.db.models.functions import Cast

from accounts.models import Account, ApiKey
from monitoring.models import Rollup
from monitoring.records import ERRORS, TIMED
from monitoring.rollups.figures import Figures
from monitoring.rollups.histograms import unpack
from monitoring.rollups.periods import (
    Period,
    Unit,
    buckets,
    compose,
    end_of,
    hour_of,
    hour_until,
    minute_of,
    moment_of,
    moment_of_minute,
)
from monitoring.rollups.store import COUNTS, HISTOGRAMS, MINUTE, PLATFORM, TOTAL

#: Up to this many ranges of starts are queried as ranges, more as a list of starts.
STRETCHES = 4
#: What a series can be grouped by, and the column of each.
GROUPS = {"account": "account_id", "key": "key_id", "model": "model", "endpoint": "endpoint"}

CALLERS = ("account", "key")
#: The fields of Figures that are sums of columns, in their order.
SUMMED = tuple(each.name for each in fields(Figures) if each.name not in HISTOGRAMS)
#: Rows that are added up before other threads may run: a few milliseconds of work.
ROWS_A_TURN = 500

T = TypeVar("T")

#: The first hour of a bucket and a group; each is None if the query does not divide by it. (The bucket's local time
#: would not do: when daylight saving ends, two hours have the same one, and Python treats them as equal.)
Place = tuple[int | None, int | str | None]
#: The bucket of each row, by grain and start.
Pieces = dict[tuple[str, int], int | None]


@dataclass(frozen=True, slots=True)
class Scope:
    """A filter of requests by account and key (ids), model and endpoint; None matches any."""

    account_id: int | None = None
    key_id: int | None = None
    model: str | None = None
    endpoint: str | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """Return the columns to filter by with their values; they have the same names in log and rollups."""
        return {name: value for name, value in asdict(self).items() if value is not None}


EVERYTHING = Scope()


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one bucket and one group of a series.

    `start` is None if the series is not divided by time. `group` is the name of the account, key, model or endpoint (a
    key over all accounts is `account/name`), and `group_id` the id of the account or key; both are None without groups.
    """

    start: datetime | None
    group: str | None
    group_id: int | None
    figures: Figures


def usage_totals(*, begin: datetime, end: datetime, scope: Scope = EVERYTHING) -> Figures:
    """Return the figures of a span."""
    (found,) = collect(lambda whose: [_pieces(whose, begin, end)], scope)
    return found.get((None, None), Figures())


def usage_series(
    *,
    begin: datetime,
    end: datetime,
    scope: Scope = EVERYTHING,
    unit: Unit | None = None,
    zone: tzinfo = UTC,
    by: str | None = None,
    timed: bool = True,
) -> list[Point]:
    """Return the figures of a span by hours, days or months of a zone (None: one bucket) and by one of GROUPS.

    Points are ordered by time, then by requests, most first; there is none without requests. The first and last bucket
    only contain their part of the span. Without `timed` the figures lack latency and first_token, which are most of the
    data if there are many groups.
    """
    (found,) = collect(lambda whose: [_pieces(whose, begin, end, unit, zone)], scope, by, timed=timed)
    return _points(found, by, zone, with_account=scope.account_id is None)


def usage_parted(
    *, begin: datetime, end: datetime, unit: Unit, apart: tuple[datetime, datetime], scope: Scope = EVERYTHING
) -> tuple[dict[datetime, Figures], Figures]:
    """Return the figures of a span by the start of its hours, days or months (UTC), and those of the part `apart`.

    Both come from the same queries, so everything in the part is in the series too.
    """
    series, part = collect(lambda whose: [_pieces(whose, begin, end, unit), _pieces(whose, *apart)], scope)
    by_start = {moment_of(start): figures for (start, _), figures in series.items() if start is not None}
    return by_start, part.get((None, None), Figures())


def usage_costs(
    *, begin: datetime, end: datetime, unit: Unit, scope: Scope = EVERYTHING
) -> dict[tuple[datetime, str], int]:
    """Return the cost (nano-dollars) by start of the hour, day or month (UTC) and model, without zero costs."""
    whose, scope = _whose(scope, "model")
    return costs_of(_pieces(whose, begin, end, unit), moment_of, scope)


def costs_of(pieces: Pieces, moment: Callable[[int], datetime], scope: Scope) -> dict[tuple[datetime, str], int]:
    """Return the cost (nano-dollars) by start of the bucket and model; `moment` converts a bucket to its start."""
    rows = Rollup.objects.filter(_within([pieces]), cost__gt=0, **scope.columns).order_by()
    costs: defaultdict[tuple[datetime, str], int] = defaultdict(int)
    for grain, start, model, spent in rows.values_list("grain", "start", "model").annotate(spent=_whole(Sum("cost"))):
        if (bucket := pieces[grain, start]) is not None:
            costs[moment(bucket), model] += spent
    return dict(costs)


def collect(
    parts: Callable[[str], list[Pieces]], scope: Scope, by: str | None = None, *, timed: bool = True
) -> list[dict[Place, Figures]]:
    """Return the figures of several parts by bucket and group, in two statements.

    `parts` gets the first letter of the grains to read, and returns the pieces of each part.
    """
    whose, scope = _whose(scope, by)
    column = GROUPS[by] if by else None
    asked = parts(whose)
    is_divided = any(bucket is not None for pieces in asked for bucket in pieces.values())
    grouping = ["grain", *(["start"] if is_divided else []), *([column] if column else [])]
    found: list[dict[Place, Figures]] = [{} for _ in asked]
    if not any(asked):
        return found
    known: dict[tuple[Any, ...], list[Figures]] = {}

    def of(row: tuple[Any, ...]) -> list[Figures]:
        """Return the sums that a row is added to; they are the same for all rows of its group."""
        if (group := row[: len(grouping)]) not in known:
            name = group[-1] if column else None
            known[group] = [
                sums.setdefault((pieces[group[:2]] if is_divided else None, name), Figures())
                for sums, pieces in zip(found, asked, strict=True)
                if not is_divided or group[:2] in pieces
            ]
        return known[group]

    rows = Rollup.objects.filter(_within(asked), **scope.columns).order_by()
    for row in _sums(rows, grouping):
        figures = Figures(*row[len(grouping) :])
        for sums in of(row):
            sums.add(figures)
    for row in _times(rows, grouping, is_long=by in CALLERS) if timed else ():
        latency, first_token = unpack(bytes(row[-2])), unpack(bytes(row[-1]))
        for sums in of(row):
            sums.latency += latency
            sums.first_token += first_token
    return found


def _pieces(whose: str, begin: datetime, end: datetime, unit: Unit | None = None, zone: tzinfo = UTC) -> Pieces:
    """Return the rows that make up the span, and the bucket of each."""
    return {
        (whose + period, start): bucket
        for first, last, bucket in buckets(hour_of(begin), hour_until(end), unit, zone)
        for period, start in compose(first, last)
    }


def _whose(scope: Scope, by: str | None) -> tuple[str, Scope]:
    """Return the letter of the coarsest rows that distinguish what is asked, and the scope with a key's account."""
    if by is None and scope == EVERYTHING:
        return TOTAL, scope
    account_id = scope.account_id
    if scope.key_id is not None and account_id is None:
        account_id = ApiKey.objects.filter(pk=scope.key_id).values_list("account_id", flat=True).first()
    whose = "k" if by == "key" or scope.key_id is not None else "a" if by == "account" or account_id else PLATFORM
    return whose, replace(scope, account_id=account_id)


def _within(asked: Iterable[Pieces]) -> Q:
    """Return a condition for rows by grain and start, with ranges of starts if those are few."""
    starts: defaultdict[str, set[int]] = defaultdict(set)
    for grain, start in chain.from_iterable(asked):
        starts[grain].add(start)
    by_grain = (Q(_starting(grain, sorted(of_grain)), grain=grain) for grain, of_grain in starts.items())
    return Q(*by_grain, _connector=Q.OR)


def _starting(grain: str, starts: Sequence[int]) -> Q:
    stretches: list[tuple[int, int]] = []
    for start in starts:
        if stretches and _next(grain, stretches[-1][1]) == start:
            stretches[-1] = (stretches[-1][0], start)
        else:
            stretches.append((start, start))
    if len(stretches) > STRETCHES:
        return Q(start__in=starts)
    return Q(*(Q(start__range=stretch) for stretch in stretches), _connector=Q.OR)


def _next(grain: str, start: int) -> int:
    return start + 1 if grain[1] == MINUTE else end_of(Period(grain[1]), start)


def _sums(rows: QuerySet[Rollup], grouping: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Sum all but the histograms; yield the grouping columns, then the sums in the order of Figures."""
    amounts = {"requests": Sum("requests")}
    amounts |= {str(outcome): Sum("requests", filter=Q(outcome=outcome), default=0) for outcome in ERRORS}
    amounts |= {name: Sum(name) for name in COUNTS if name not in amounts}
    # Without a server-side cursor: PostgreSQL would store the whole result before it returns the first row.
    return _in_turns(rows.values_list(*grouping).annotate(**{f"sum_{name}": _whole(amounts[name]) for name in SUMMED}))


def _whole(amount: Sum) -> Cast:
    """Cast a sum to an integer: PostgreSQL's sums are decimals, and parsing those takes longer than adding them."""
    return Cast(amount, BigIntegerField())


def _times(rows: QuerySet[Rollup], grouping: Sequence[str], *, is_long: bool) -> Iterator[tuple[Any, ...]]:
    """Yield the grouping columns and the histograms of each row; Python adds them up faster than a database would.

    If `is_long` (there may be very many rows, of many callers), a server-side cursor fetches them in parts. That takes
    twice as long, because the database stores the result before it returns the first row.
    """
    timed = rows.filter(outcome__in=TIMED).values_list(*grouping, "latency", "first_token")
    return _in_turns(timed.iterator() if is_long else timed)


def _in_turns(rows: Iterable[T]) -> Iterator[T]:
    """Let other threads run after each ROWS_A_TURN rows: a year of hours by key is seconds of work."""
    for number, row in enumerate(rows, start=1):
        yield row
        if number % ROWS_A_TURN == 0:
            time.sleep(0)


def _points(found: Mapping[Place, Figures], by: str | None, zone: tzinfo, *, with_account: bool) -> list[Point]:
    """Return sorted points with names; groups of the same name are added up."""
    groups = {group for _, group in found}
    names = caller_names(by, cast("set[int]", groups), with_account=with_account) if by in CALLERS else {}
    points: dict[Place, Point] = {}
    for (hour, group), figures in found.items():
        name = names[group] if isinstance(group, int) else group
        start = None if hour is None else moment_of(hour).astimezone(zone)
        point = Point(start, name, group if isinstance(group, int) else None, figures)
        if (known := points.setdefault((hour, name), point)) is not point:
            known.figures.add(figures)
    return sorted(
        points.values(), key=lambda each: (each.start.timestamp() if each.start else 0.0, -each.figures.requests)
    )


def caller_names(kind: str | None, identifiers: Set[int], *, with_account: bool) -> dict[int, str]:
    """Return the present names of accounts or keys (`kind`) by id; for deleted ones, the recorded names.

    Keys are named `account/name` if `with_account`.
    """
    if kind == "account":
        called = dict(Account.objects.filter(pk__in=identifiers).values_list("pk", "name"))
        if gone := identifiers - set(called):
            accounts = Rollup.objects.filter(grain=Rollup.Grain.ACCOUNT_MONTH, account_id__in=gone).order_by()
            called |= dict(accounts.values_list("account_id").annotate(Max("account_name")))
        return called
    present = ApiKey.objects.filter(pk__in=identifiers).values_list("pk", "account__name", "name")
    found = {pk: (account, name) for pk, account, name in present}
    if missing := identifiers - set(found):
        keys = Rollup.objects.filter(grain=Rollup.Grain.KEY_MONTH, key_id__in=missing).order_by()
        for key_id, account, name in keys.values_list("key_id").annotate(Max("account_name"), Max("key_name")):
            found[key_id] = (account, name)
    return {pk: f"{account}/{name}" if with_account else name for pk, (account, name) in found.items()}


@dataclass(frozen=True, slots=True)
class Rank:
    """Usage of an account or, with `key_id`, of one of its keys. `cost`: nano-dollars, without unpriced requests."""

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
    """The accounts and the keys with the highest cost; equal costs are ordered by requests, most first."""

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


#: Reads the keys' rows once; the sums by account are made from the sums by key.
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
    """Return the accounts and keys with the highest cost in a span, widened to whole hours; `end` may be in the future.

    Names are the present ones; for deleted accounts and keys, the recorded ones.
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
    """Return the ids of the keys with the most requests, most first."""
    rows = Rollup.objects.filter(Q(*_stretches("k", begin, end), _connector=Q.OR)).order_by().values("key_id")
    most = rows.annotate(asked=Sum("requests")).order_by("-asked", "key_id")[:limit]
    return [row["key_id"] for row in most]


def _stretches(whose: str, begin: datetime, end: datetime) -> Iterator[Q]:
    """Yield conditions for the months, days and hours that make up a span, each with as few ranges as possible."""
    periods = compose(hour_of(begin), hour_until(end))
    for period, alike in groupby(periods, key=lambda each: each[0]):
        starts = [start for _, start in alike]
        yield Q(grain=whose + Period(period), start__range=(starts[0], starts[-1]))


Span = tuple[datetime, datetime]


def usage_by_minute(*, span: Span, before: Span, scope: Scope) -> tuple[dict[datetime, Figures], Figures]:
    """Return the figures of a span by minute, and those of the span `before`; both have whole minutes.

    The scope must not have an account or key.
    """
    minutes, earlier = collect(
        lambda whose: [_minute_pieces(whose, span), dict.fromkeys(_minute_pieces(whose, before))], scope
    )
    by_minute = {moment_of_minute(minute): figures for (minute, _), figures in minutes.items() if minute is not None}
    return by_minute, earlier.get((None, None), Figures())


def costs_by_minute(*, span: Span, scope: Scope) -> dict[tuple[datetime, str], int]:
    """Return the cost (nano-dollars) by minute and model, without zero costs; the scope has no account or key."""
    return costs_of(_minute_pieces(PLATFORM, span), moment_of_minute, scope)


def _minute_pieces(whose: str, span: Span) -> Pieces:
    return {(whose + MINUTE, minute): minute for minute in range(*map(minute_of, span))}
