"""What readers ask the rollups: totals, series by time, and who had most of it.

None of these reads the log. Times are aware datetimes; `end` is excluded. Rollups are kept by the hour, so a span is
widened to the whole hours that it touches.

Who had most: added up and put in order by the database, so that a page of few reads no more than it shows.

The last hours by the minute, of all accounts together: what a dashboard looks at while something happens.
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

#: More stretches of time than this are asked for one by one.
STRETCHES = 4
#: What a series may be split by, and the column that tells.
GROUPS = {"account": "account_id", "key": "key_id", "model": "model", "endpoint": "endpoint"}

CALLERS = ("account", "key")
#: What the columns of a rollup add up to, in the order of Figures.
SUMMED = tuple(each.name for each in fields(Figures) if each.name not in HISTOGRAMS)
#: Rows that are added up before others of the process get their turn: a few milliseconds' work.
ROWS_A_TURN = 500

T = TypeVar("T")

#: The hour in which a bucket begins and a group, either None where it isn't asked for. (Not the bucket's local time:
#: that may come twice, an hour apart, and Python takes the two for one.)
Place = tuple[int | None, int | str | None]
#: Rows, by grain and start, and the bucket that each belongs to.
Pieces = dict[tuple[str, int], int | None]


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose requests, and which: those of an account or key (by id), a model, an endpoint; None: of any."""

    account_id: int | None = None
    key_id: int | None = None
    model: str | None = None
    endpoint: str | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that are given, with their values: the log and the rollups call them alike."""
        return {name: value for name, value in asdict(self).items() if value is not None}


EVERYTHING = Scope()


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one bucket of a series (`start`: None where time does not split it) and of one group.

    `group` is the name of the account (of all accounts, a key is `account/name`), key, model or endpoint, and
    `group_id` the id of account or key. Both are None where nothing but time splits the series.
    """

    start: datetime | None
    group: str | None
    group_id: int | None
    figures: Figures


def usage_totals(*, begin: datetime, end: datetime, scope: Scope = EVERYTHING) -> Figures:
    """Add up a span of time."""
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
    """Add up a span of time by hours, days or months of a time zone (None: all in one) and by one of GROUPS.

    Without `timed` the figures lack latency and first_token: of many groups, those are most of what there is to read.

    A series has gaps: where nothing was asked, there is no point. In order of time, then by requests, most first.
    The first and the last bucket hold what of them is in the span.
    """
    (found,) = collect(lambda whose: [_pieces(whose, begin, end, unit, zone)], scope, by, timed=timed)
    return _points(found, by, zone, with_account=scope.account_id is None)


def usage_parted(
    *, begin: datetime, end: datetime, unit: Unit, apart: tuple[datetime, datetime], scope: Scope = EVERYTHING
) -> tuple[dict[datetime, Figures], Figures]:
    """Add up a span as a series, by where its hours, days or months (UTC) begin, and a part of it once more by itself.

    Both are of the same moment: what is in the part is in the series for certain.
    """
    series, part = collect(lambda whose: [_pieces(whose, begin, end, unit), _pieces(whose, *apart)], scope)
    by_start = {moment_of(start): figures for (start, _), figures in series.items() if start is not None}
    return by_start, part.get((None, None), Figures())


def usage_costs(
    *, begin: datetime, end: datetime, unit: Unit, scope: Scope = EVERYTHING
) -> dict[tuple[datetime, str], int]:
    """Add up what each model cost by where hours, days or months (UTC) begin; what cost nothing is left out."""
    whose, scope = _whose(scope, "model")
    return costs_of(_pieces(whose, begin, end, unit), moment_of, scope)


def costs_of(pieces: Pieces, moment: Callable[[int], datetime], scope: Scope) -> dict[tuple[datetime, str], int]:
    """Add up what each model cost by bucket, of which `moment` says when it begins."""
    rows = Rollup.objects.filter(_within([pieces]), cost__gt=0, **scope.columns).order_by()
    costs: defaultdict[tuple[datetime, str], int] = defaultdict(int)
    for grain, start, model, spent in rows.values_list("grain", "start", "model").annotate(spent=_whole(Sum("cost"))):
        if (bucket := pieces[grain, start]) is not None:
            costs[moment(bucket), model] += spent
    return dict(costs)


def collect(
    parts: Callable[[str], list[Pieces]], scope: Scope, by: str | None = None, *, timed: bool = True
) -> list[dict[Place, Figures]]:
    """Add up each of the parts by bucket and group, all of them in two statements; `parts` is told whose rows."""
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
        """List what the rows of a group are added to; the group is what begins a row."""
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
    """Say which rows make up the span, by grain and start, and which bucket each belongs to."""
    return {
        (whose + period, start): bucket
        for first, last, bucket in buckets(hour_of(begin), hour_until(end), unit, zone)
        for period, start in compose(first, last)
    }


def _whose(scope: Scope, by: str | None) -> tuple[str, Scope]:
    """Choose the coarsest rows that tell apart what is asked, and name a key's account as well."""
    if by is None and scope == EVERYTHING:
        return TOTAL, scope
    account_id = scope.account_id
    if scope.key_id is not None and account_id is None:
        account_id = ApiKey.objects.filter(pk=scope.key_id).values_list("account_id", flat=True).first()
    whose = "k" if by == "key" or scope.key_id is not None else "a" if by == "account" or account_id else PLATFORM
    return whose, replace(scope, account_id=account_id)


def _within(asked: Iterable[Pieces]) -> Q:
    """Select rows by where they start, in stretches if those are few."""
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
    """Add up all but the histograms, by columns: those, and then the sums in the order of Figures."""
    amounts = {"requests": Sum("requests")}
    amounts |= {str(outcome): Sum("requests", filter=Q(outcome=outcome), default=0) for outcome in ERRORS}
    amounts |= {name: Sum(name) for name in COUNTS if name not in amounts}
    # Not by a cursor of the server's: that would write all of the answer down before its first row.
    return _in_turns(rows.values_list(*grouping).annotate(**{f"sum_{name}": _whole(amounts[name]) for name in SUMMED}))


def _whole(amount: Sum) -> Cast:
    """Have a sum told as a whole number: PostgreSQL's are decimals, which take longer to read than they took to add."""
    return Cast(amount, BigIntegerField())


def _times(rows: QuerySet[Rollup], grouping: Sequence[str], *, is_long: bool) -> Iterator[tuple[Any, ...]]:
    """List the histograms of all rows behind those columns: they are added up here, which no database does as fast.

    Where there may be rows without number, those of many callers, they are fetched little by little. That takes twice
    as long: the database writes the answer down before its first row.
    """
    timed = rows.filter(outcome__in=TIMED).values_list(*grouping, "latency", "first_token")
    return _in_turns(timed.iterator() if is_long else timed)


def _in_turns(rows: Iterable[T]) -> Iterator[T]:
    """Let others have their turn after each ROWS_A_TURN: a year of hours by key is seconds of work."""
    for number, row in enumerate(rows, start=1):
        yield row
        if number % ROWS_A_TURN == 0:
            time.sleep(0)


def _points(found: Mapping[Place, Figures], by: str | None, zone: tzinfo, *, with_account: bool) -> list[Point]:
    """Name buckets and groups, and put them in order; two groups of one name are one."""
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
    """Name accounts or keys (`kind`) by what they are called now or, where they are gone, as it was written down.

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


Span = tuple[datetime, datetime]


def usage_by_minute(*, span: Span, before: Span, scope: Scope) -> tuple[dict[datetime, Figures], Figures]:
    """Add up a span by minute, and the span `before` as one; both begin and end with whole minutes.

    The scope names no account and no key.
    """
    minutes, earlier = collect(
        lambda whose: [_minute_pieces(whose, span), dict.fromkeys(_minute_pieces(whose, before))], scope
    )
    by_minute = {moment_of_minute(minute): figures for (minute, _), figures in minutes.items() if minute is not None}
    return by_minute, earlier.get((None, None), Figures())


def costs_by_minute(*, span: Span, scope: Scope) -> dict[tuple[datetime, str], int]:
    """Add up what each model cost by minute; what cost nothing is left out. The scope names no account and no key."""
    return costs_of(_minute_pieces(PLATFORM, span), moment_of_minute, scope)


def _minute_pieces(whose: str, span: Span) -> Pieces:
    return {(whose + MINUTE, minute): minute for minute in range(*map(minute_of, span))}
