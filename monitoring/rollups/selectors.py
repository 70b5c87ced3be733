"""What readers ask the rollups: totals, series by time, and who had most of it.

None of these reads the log. Times are aware datetimes; `end` is excluded. Rollups are kept by the hour, so a span is
widened to the whole hours that it touches.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, tzinfo
from typing import Any, TypeVar, cast

from django.db.models import Max, Q, QuerySet, Sum

from accounts.models import Account, ApiKey
from monitoring.models import Rollup
from monitoring.outcomes import ERRORS, TIMED
from monitoring.rollups.calendar import Unit, buckets
from monitoring.rollups.figures import Figures
from monitoring.rollups.histograms import unpack
from monitoring.rollups.periods import Period, compose, end_of, hour_of, hour_until, moment_of
from monitoring.rollups.tallies import COUNTS

#: More stretches of time than this are asked for one by one.
STRETCHES = 4
#: What a series may be split by, and the column that tells.
GROUPS = {"account": "account_id", "key": "key_id", "model": "model", "endpoint": "endpoint"}

CALLERS = ("account", "key")
#: Rows that are added up before others of the process get their turn: a few milliseconds' work.
ROWS_A_TURN = 500

T = TypeVar("T")

#: The hour in which a bucket begins and a group, either None where it isn't asked for. (Not the bucket's local time:
#: that may come twice, an hour apart, and Python takes the two for one.)
Place = tuple[int | None, int | str | None]


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
    found = _collect(begin=begin, end=end, scope=scope)
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
    found = _collect(begin=begin, end=end, scope=scope, unit=unit, zone=zone, by=by, timed=timed)
    points = _points(found, by, zone, with_account=scope.account_id is None)
    return sorted(points, key=lambda each: (each.start.timestamp() if each.start else 0.0, -each.figures.requests))


def _collect(
    *,
    begin: datetime,
    end: datetime,
    scope: Scope,
    unit: Unit | None = None,
    zone: tzinfo = UTC,
    by: str | None = None,
    timed: bool = True,
) -> dict[Place, Figures]:
    """Add up by bucket and group."""
    column = GROUPS[by] if by else None
    grouping = [name for name in ("start" if unit else None, column) if name]
    sums: defaultdict[Place, Figures] = defaultdict(Figures)
    for period, bucket_of in _pieces(begin, end, unit, zone).items():

        def place(row: Mapping[str, Any], bucket_of: Mapping[int, int | None] = bucket_of) -> Place:
            return bucket_of[row["start"]] if unit else None, row[column] if column else None

        rows = _rows(scope, by, period).filter(_within(period, bucket_of))
        for row, figures in _sums(rows, grouping):
            sums[place(row)] += figures
        for row, latency, first_token in _times(rows, grouping) if timed else ():
            known = sums[place(row)]
            known.latency += latency
            known.first_token += first_token
    return sums


def _pieces(begin: datetime, end: datetime, unit: Unit | None, zone: tzinfo) -> dict[Period, dict[int, int | None]]:
    """Say which periods, by where they start, make up the span, and which bucket each belongs to."""
    pieces: dict[Period, dict[int, int | None]] = {}
    for first, last, bucket in buckets(hour_of(begin), hour_until(end), unit, zone):
        for period, start in compose(first, last):
            pieces.setdefault(period, {})[start] = bucket
    return pieces


def _rows(scope: Scope, by: str | None, period: Period) -> QuerySet[Rollup]:
    """Select the coarsest rows that tell callers apart as far as is asked."""
    account_id = scope.account_id
    if scope.key_id is not None and account_id is None:
        account_id = ApiKey.objects.filter(pk=scope.key_id).values_list("account_id", flat=True).first()
    whose = "k" if by == "key" or scope.key_id is not None else "a" if by == "account" or account_id else "p"
    return Rollup.objects.filter(grain=whose + period, **replace(scope, account_id=account_id).columns)


def _within(period: Period, starts: Iterable[int]) -> Q:
    """Select rows by where they start: as few stretches of time as there are, or one by one."""
    stretches: list[tuple[int, int]] = []
    for start in sorted(starts):
        if stretches and end_of(period, stretches[-1][1]) == start:
            stretches[-1] = (stretches[-1][0], start)
        else:
            stretches.append((start, start))
    if len(stretches) > STRETCHES:
        return Q(start__in=list(starts))
    return Q(*(Q(start__range=stretch) for stretch in stretches), _connector=Q.OR)


def _sums(rows: QuerySet[Rollup], grouping: Sequence[str]) -> Iterator[tuple[Mapping[str, Any], Figures]]:
    """Add up all but the histograms, by columns."""
    amounts = {f"sum_{name}": Sum(name) for name in COUNTS} | {
        f"sum_{outcome}": Sum("requests", filter=Q(outcome=outcome)) for outcome in ERRORS
    }
    # Grouping by a constant instead of by nothing: of no rows, it makes no row.
    grouped = rows.order_by().values("grain", *grouping).annotate(**amounts)
    # Not by a cursor of the server's: that would write all of the answer down before its first row.
    for row in _in_turns(grouped):
        yield row, Figures(**{name.removeprefix("sum_"): int(row[name] or 0) for name in amounts})


def _times(rows: QuerySet[Rollup], grouping: Sequence[str]) -> Iterator[tuple[Mapping[str, Any], int, int]]:
    """List the histograms of all rows: they are added up here, which no database does as fast."""
    timed = rows.filter(outcome__in=TIMED).order_by().values_list("latency", "first_token", *grouping)
    for latency, first_token, *values in _in_turns(timed.iterator()):
        yield dict(zip(grouping, values, strict=True)), unpack(bytes(latency)), unpack(bytes(first_token))


def _in_turns(rows: Iterable[T]) -> Iterator[T]:
    """Let others have their turn after each ROWS_A_TURN: a year of hours by key is seconds of work."""
    for number, row in enumerate(rows, start=1):
        yield row
        if number % ROWS_A_TURN == 0:
            time.sleep(0)


def _points(found: Mapping[Place, Figures], by: str | None, zone: tzinfo, *, with_account: bool) -> list[Point]:
    """Name buckets and groups; two groups of one name are one."""
    groups = {group for _, group in found}
    names = caller_names(by, cast("set[int]", groups), with_account=with_account) if by in CALLERS else {}
    points: dict[Place, Point] = {}
    for (hour, group), figures in found.items():
        name = names[group] if isinstance(group, int) else group
        start = None if hour is None else moment_of(hour).astimezone(zone)
        point = Point(start, name, group if isinstance(group, int) else None, Figures())
        known = points.setdefault((hour, name), point).figures
        known += figures
    return list(points.values())


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
