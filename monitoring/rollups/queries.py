"""Queries of the rollups: totals, series by time, rankings of accounts and keys, and the platform's last minutes.

None of them reads the log. Times are aware datetimes; `end` is excluded. Rollups are kept by the quarter hour, so a
span is widened to whole quarter hours. The database adds up the rows, histograms included, and returns only sums.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, tzinfo
from typing import Any, cast

from django.db.models import BigIntegerField, Expression, F, Func, IntegerField, Max, Q, QuerySet, Sum
from django.db.models.functions import Cast

from accounts.models import Account, ApiKey
from monitoring.models import ERRORS, Rollup
from monitoring.rollups.figures import Figures
from monitoring.rollups.histograms import Joined, unpack
from monitoring.rollups.periods import DAY, QUARTER, Unit, buckets, ceiling, compose, datetime_of, floor, minute_of
from monitoring.rollups.store import (
    ACCOUNT_DAY,
    COUNTS,
    HISTOGRAMS,
    KEY_DAY,
    KEY_QUARTER,
    PLATFORM_DAY,
    PLATFORM_MINUTE,
    PLATFORM_QUARTER,
)

#: What a series can be grouped by, and the column of each.
GROUPS = {"account": "account_id", "key": "key_id", "model": "model", "endpoint": "endpoint"}

CALLERS = ("account", "key")
#: The fields of Figures that are sums of columns, in their order.
SUMMED = tuple(each.name for each in fields(Figures) if each.name not in HISTOGRAMS)
#: Rows that are added up before other threads may run: a few milliseconds of work.
ROWS_A_TURN = 500

#: The rows to read of keys, accounts and the platform: grains by the length of the period.
OF_KEYS = {QUARTER: KEY_QUARTER, DAY: KEY_DAY}
OF_ACCOUNTS = {QUARTER: KEY_QUARTER, DAY: ACCOUNT_DAY}
OF_PLATFORM = {QUARTER: PLATFORM_QUARTER, DAY: PLATFORM_DAY}

#: The first minute of a bucket and a group; each is None if the query does not divide by it. (The bucket's local time
#: would not do: when daylight saving ends, two hours have the same one, and Python treats them as equal.)
Cell = tuple[int | None, int | str | None]
#: Rows that start in a span of minutes (`end` excluded): grain, begin, end.
Part = tuple[str, int, int]


class TooOld(ValueError):  # no Error suffix, like the exceptions of accounts
    """The span needs quarter hours of keys that have been deleted; the message is for the caller."""


class Bucket(Func):
    """The start of a row's bucket (see periods.buckets), by a binary search in SQL: far fewer rows are returned."""

    output_field = IntegerField()

    def __init__(self, divided: Sequence[tuple[int, int, int | None]]) -> None:
        super().__init__("start")
        self.divided = divided

    def as_sql(self, compiler: Any, connection: Any, *_: Any, **__: Any) -> Any:
        """Return nested CASE expressions."""
        column, params = compiler.compile(self.source_expressions[0])
        return _search(column, self.divided), params


def _search(column: str, divided: Sequence[tuple[int, int, int | None]]) -> str:
    if len(divided) == 1:
        return str(divided[0][2])
    middle = len(divided) // 2
    lower, higher = (_search(column, each) for each in (divided[:middle], divided[middle:]))
    return f"CASE WHEN {column} < {divided[middle][0]} THEN {lower} ELSE {higher} END"


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
    """Return the figures of a span. Raises TooOld."""
    return Figures.sum_of(point.figures for point in usage_series(begin=begin, end=end, scope=scope))


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

    Without `timed` they lack histograms, which take most of the time. Points are ordered by time, then by requests,
    most first; there is none without requests. The first and last bucket only contain their part of the span. Raises
    TooOld.
    """
    scope = _indexed(scope)
    divided = list(buckets(floor(begin, QUARTER), ceiling(end, QUARTER), unit, zone))
    parts = span_parts(((first, last) for first, last, _ in divided), _grains(scope, by))
    found: defaultdict[Cell, Figures] = defaultdict(Figures)
    for cell, figures in _sums(parts, scope, by, None if unit is None else Bucket(divided), timed=timed):
        found[cell].add(figures)
    rows = Rollup.objects.filter(within(parts), **scope.columns)
    return _points(found, by, zone, rows, with_account=scope.account_id is None)


def _indexed(scope: Scope) -> Scope:
    """Return a scope with the account of its key, because the index begins with the account."""
    if scope.key_id is None or scope.account_id is not None:
        return scope
    account = ApiKey.objects.filter(pk=scope.key_id).values_list("account_id", flat=True).first()
    return replace(scope, account_id=account)


def requests_by_outcome(*, begin: int, end: int, width: int, scope: Scope = EVERYTHING) -> list[tuple[int, str, int]]:
    """Return requests by period (its first minute) and outcome; the width (minutes) is a multiple of a QUARTER."""
    grain = _grains(scope, None)[QUARTER if width % DAY else DAY]
    rows = Rollup.objects.filter(within([(grain, begin, end)]), **_indexed(scope).columns).order_by()
    grouped = rows.annotate(period=F("start") / width * width).values_list("period", "outcome")
    return [(period, outcome, int(requests)) for period, outcome, requests in grouped.annotate(Sum("requests"))]


def usage_by_minute(*, begin: datetime, end: datetime, scope: Scope = EVERYTHING, by: str | None = None) -> list[Point]:
    """Return the platform's figures by minute and by one of GROUPS; the scope and group are not of accounts or keys."""
    parts = [(PLATFORM_MINUTE, minute_of(begin), minute_of(end))]
    return _points(dict(_sums(parts, scope, by, F("start"))), by, UTC, Rollup.objects.none(), with_account=True)


def span_parts(spans: Iterable[tuple[int, int]], grains: Mapping[int, str] = OF_KEYS) -> list[Part]:
    """Return the rows of days and quarter hours that make up adjacent spans of minutes. Raises TooOld."""
    parts: list[Part] = []
    for length, first, last in (part for span in spans for part in compose(*span)):
        if parts and (parts[-1][0], parts[-1][2]) == (grains[length], first):
            parts[-1] = (grains[length], parts[-1][1], last)
        else:
            parts.append((grains[length], first, last))
    oldest = next((first for grain, first, _ in parts if grain == KEY_QUARTER), None)
    if oldest is not None and (kept := quarters_since()) is not None and oldest < kept:
        raise TooOld(
            f"Before {datetime_of(kept):%Y-%m-%d}, usage of accounts and keys is kept by the day of UTC only: "
            "give whole days of UTC, by the day or month."
        )
    return parts


def quarters_since() -> int | None:
    """Return the first minute from which on the keys' quarter hours are kept; None if none has been deleted."""
    quarters, days = (Rollup.objects.filter(grain=grain).order_by("start") for grain in (KEY_QUARTER, KEY_DAY))
    first = quarters.values_list("start", flat=True).first()
    if first is not None:
        day = first - first % DAY
        # The first day may have lost its beginning.
        return day + DAY if days.filter(start__lt=day).exists() else None
    last = days.values_list("start", flat=True).last()
    return None if last is None else last + DAY


def within(parts: Sequence[Part]) -> Q:
    """Return the condition for the rows of parts."""
    return Q(*(Q(grain=grain, start__gte=begin, start__lt=end) for grain, begin, end in parts), _connector=Q.OR)


def _grains(scope: Scope, by: str | None) -> Mapping[int, str]:
    if by == "key" or scope.key_id is not None:
        return OF_KEYS
    return OF_PLATFORM if by != "account" and scope.account_id is None else OF_ACCOUNTS


def _sums(
    parts: Sequence[Part], scope: Scope, by: str | None, bucket: Expression | F | None, *, timed: bool = True
) -> Iterator[tuple[Cell, Figures]]:
    """Yield the sums of rows by bucket (None: only one) and group; without a bucket, a group may have several."""
    if not parts:
        return
    grouping = ["grain" if bucket is None else "bucket", *([GROUPS[by]] if by else [])]
    rows = Rollup.objects.filter(within(parts), **scope.columns).order_by()
    divided = rows if bucket is None else rows.annotate(bucket=bucket)
    summed = divided.values_list(*grouping).annotate(
        **_amounts(),
        **{f"sum_{name}": Joined(name) for name in HISTOGRAMS if timed},
    )
    # By caller, there may be very many rows: a server-side cursor fetches them in parts, but takes longer for few.
    for number, row in enumerate(summed.iterator() if by in CALLERS else summed, start=1):
        sums = row[len(grouping) :]
        figures = Figures(*sums[: len(SUMMED)], *map(unpack, sums[len(SUMMED) :]))
        yield (None if bucket is None else row[0], row[1] if by else None), figures
        if number % ROWS_A_TURN == 0:
            time.sleep(0)  # let other threads run: a year by key is seconds of work


def _amounts() -> dict[str, Any]:
    """Return the sums of columns that make up Figures, without histograms."""
    amounts: dict[str, Any] = {name: Sum(name) for name in COUNTS}
    amounts |= {str(outcome): Sum("requests", filter=Q(outcome=outcome), default=0) for outcome in ERRORS}
    return {f"sum_{name}": Cast(amounts[name], BigIntegerField()) for name in SUMMED}


def account_parts(begin: datetime, end: datetime) -> list[Part]:
    """Return the accounts' rows of a span. Raises TooOld."""
    return span_parts([(floor(begin, QUARTER), ceiling(end, QUARTER))], OF_ACCOUNTS)


def accounts_by_cost(parts: Sequence[Part], *others: Q) -> list[int]:
    """Return the ids of the accounts with rows in a span or of other conditions, the highest cost in the span first."""
    first = within(parts) if parts else Q(pk__in=())
    rows = Rollup.objects.filter(Q(first, *others, _connector=Q.OR)).order_by().values("account_id")
    summed = rows.annotate(spent=Sum("cost", filter=first, default=0), asked=Sum("requests", filter=first, default=0))
    return list(summed.order_by("-spent", "-asked", "account_id").values_list("account_id", flat=True))


def usage_by_account_and_model(parts: Sequence[Part], accounts: Sequence[int]) -> list[tuple[tuple[int, str], Figures]]:
    """Return the figures of accounts in a span, without histograms, by account (id) and model."""
    if not parts:
        return []
    rows = Rollup.objects.filter(within(parts), account_id__in=accounts).order_by()
    summed = rows.values_list("account_id", "model").annotate(**_amounts())
    return [((account, model), Figures(*sums)) for account, model, *sums in summed]


def _points(
    found: Mapping[Cell, Figures], by: str | None, zone: tzinfo, rows: QuerySet[Rollup], *, with_account: bool
) -> list[Point]:
    """Return sorted points with names, those of deleted callers from `rows`; groups of the same name are added up."""
    groups = {group for _, group in found}
    names = caller_names(by, cast("set[int]", groups), rows, with_account=with_account) if by in CALLERS else {}
    points: dict[Cell, Point] = {}
    for (minute, group), figures in found.items():
        name = names[group] if isinstance(group, int) else group
        start = None if minute is None else datetime_of(minute).astimezone(zone)
        point = Point(start, name, group if isinstance(group, int) else None, figures)
        if (known := points.setdefault((minute, name), point)) is not point:
            known.figures.add(figures)
    return sorted(
        points.values(), key=lambda each: (each.start.timestamp() if each.start else 0.0, -each.figures.requests)
    )


def caller_names(
    kind: str | None, identifiers: Set[int], rows: QuerySet[Rollup], *, with_account: bool
) -> dict[int, str]:
    """Return the present names of accounts or keys (`kind`) by id; for deleted ones, those recorded in `rows`.

    Keys are named `account/name` if `with_account`.
    """
    is_account = kind == "account"
    called: Any = Account.objects if is_account else ApiKey.objects
    # The names of all keys are read in less time than a query with a thousand ids takes.
    called = called.filter(pk__in=identifiers) if is_account or len(identifiers) < 1000 else called.all()
    names = ("name",) if is_account else ("account__name", "name")
    recorded = ("account_name",) if is_account else ("account_name", "key_name")
    column = "account_id" if is_account else "key_id"
    found = {pk: name for pk, *name in called.order_by().values_list("pk", *names)}
    if missing := identifiers - set(found):
        gone = rows.filter(**{f"{column}__in": missing}).order_by().values_list(column)
        found |= {pk: name for pk, *name in gone.annotate(*map(Max, recorded))}
    return {pk: "/".join(name if with_account else name[-1:]) for pk, name in found.items()}


@dataclass(frozen=True, slots=True)
class Rank:
    """Usage of an account or, with `key_id`, of one of its keys. `cost`: nano-dollars, without unpriced requests."""

    account_id: int
    account: str
    requests: int
    failed: int
    tokens: int
    cost: int
    unpriced: int = 0
    key_id: int = 0
    key: str = ""


@dataclass(frozen=True, slots=True)
class Rankings:
    """The accounts and keys with the highest cost since `begin`; those of equal cost by requests, most first."""

    begin: datetime
    accounts: Sequence[Rank]
    keys: Sequence[Rank]


#: The sums of a Rank. Sums with a column's name come last, because expressions after them would refer to the sum.
_RANKED = {
    "tokens": Sum(F("input_tokens") + F("output_tokens")),
    "failed": Sum("requests", filter=Q(outcome=Rollup.Outcome.FAILED), default=0),
    **{name: Sum(name) for name in ("requests", "cost", "unpriced")},
}


def usage_rankings(
    *, begin: datetime, end: datetime, scope: Scope = EVERYTHING, limit: int = 5, with_keys: bool = True
) -> Rankings:
    """Return the accounts and keys with the highest cost in a span; `end` may be in the future.

    The span is widened to whole quarter hours, or to whole days (UTC) if quarter hours have been deleted. Names are the
    present ones; for deleted accounts and keys, the recorded ones. Without `with_keys`, only accounts are ranked: of
    10,000 keys, that takes a fiftieth of the time.
    """
    first, last = floor(begin, QUARTER), ceiling(end, QUARTER)
    try:
        span_parts([(first, last)])
    except TooOld:
        first, last = floor(begin, DAY), ceiling(end, DAY)

    def ranked(*kinds: str) -> list[Rank]:
        parts = span_parts([(first, last)], _grains(scope, kinds[-1]))
        rows = Rollup.objects.filter(within(parts), **scope.columns).order_by()
        columns = [GROUPS[kind] for kind in kinds]
        most = rows.values(*columns).annotate(**_RANKED).order_by("-cost", "-requests", *columns)[:limit]
        found: list[dict[str, Any]] = [{name: int(value) for name, value in row.items()} for row in most]
        for kind in kinds:
            names = caller_names(kind, {row[GROUPS[kind]] for row in found}, rows, with_account=False)
            for row in found:
                row[kind] = names[row[GROUPS[kind]]]
        return [Rank(**row) for row in found]

    return Rankings(datetime_of(first), ranked("account"), ranked("account", "key") if with_keys else [])


def busiest_keys(*, begin: datetime, end: datetime, limit: int) -> list[int]:
    """Return the ids of the keys with the most requests, most first. Raises TooOld."""
    parts = span_parts([(floor(begin, QUARTER), ceiling(end, QUARTER))])
    rows = Rollup.objects.filter(within(parts)).order_by().values("key_id")
    most = rows.annotate(asked=Sum("requests")).order_by("-asked", "key_id")[:limit]
    return [row["key_id"] for row in most]
