"""Compares rollups with the log, or rebuilds them from it, while other processes write to both.

The database adds up the log of one day (UTC) after the other; the rows of a day are compared key by key, so memory
does not grow with either. The log's first day is left out if records of it may have been pruned.

The arguments `--from` and `--to` of the commands about rollups are defined here too.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any

from django.db import connection, transaction
from django.db.models import Max, Min, Q, QuerySet, Sum
from django.utils import timezone

from core.arguments import datetime_argument, require_order
from core.database import repeatable_read
from monitoring.models import RequestRecord, Rollup
from monitoring.retention import has_earlier_rollups, pruned_before
from monitoring.rollups.log import ROWS_AT_A_TIME, log_sums
from monitoring.rollups.periods import (
    DAY,
    EPOCH,
    ONE_DAY,
    QUARTER,
    ceiling,
    datetime_of,
    floor,
    minute_of,
    month_minute,
)
from monitoring.rollups.store import (
    ACCOUNT_DAY,
    COUNTS,
    HISTOGRAMS,
    KEY_DAY,
    KEY_MONTH,
    KEY_QUARTER,
    MEASURES,
    MINUTES_WRITTEN,
    NOBODY,
    PLATFORM_DAY,
    PLATFORM_MINUTE,
    PLATFORM_QUARTER,
    READ,
    Names,
    Row,
    Sums,
    Tally,
    decoded,
    month_row,
    rollups_delete,
    rollups_lock,
    rollups_write,
    spread,
    without_histograms,
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is wrong: the tally it should have and the one it has; None for no row."""

    row: Row
    expected: Tally | None
    kept: Tally | None
    names: Names = NOBODY

    def __str__(self) -> str:
        grain, start, account_id, key_id, *what = self.row
        where = f"{Rollup.Grain(grain).label.lower()} {datetime_of(start):%Y-%m-%d %H:%M}"
        whose = " ".join([f"account {account_id} key {key_id}", *(part for part in what if part)])
        nothing = [0] * len(MEASURES)
        pairs = zip(MEASURES, self.kept or nothing, self.expected or nothing, strict=True)
        wrong = [
            f"{name} {kept} instead of {expected}" if name not in HISTOGRAMS else name
            for name, kept, expected in pairs
            if kept != expected
        ]
        return f"{where}, {whose}: {', '.join(wrong)}"


def rollups_differences(begin: datetime, until: datetime) -> Iterator[Difference]:
    """Compare the rollups of the days that a span touches with the log, and their months with the days; change nothing.

    Each day and month is read in one snapshot of the database, in which log and rollups agree.
    """
    for differences in _comparisons(begin, until):
        with repeatable_read():
            found = differences()
        yield from found


def rollups_rebuild(begin: datetime, until: datetime) -> Iterator[Difference]:
    """Correct the rollups of the days that a span touches and their months, a transaction each; yield what was wrong.

    Other writers wait only while a day or month that is wrong is added up again.
    """
    for differences in _comparisons(begin, until):
        with repeatable_read():
            if not differences():
                continue
        with transaction.atomic(), connection.cursor() as cursor:
            rollups_lock(cursor)
            wrong = differences()
            right = {each.row: each.expected for each in wrong if each.expected is not None}
            rollups_write(cursor, right, {each.row: each.names for each in wrong})
            rollups_delete(cursor, [each.row for each in wrong if each.expected is None])
        yield from wrong


def _comparisons(begin: datetime, until: datetime) -> list[Callable[[], list[Difference]]]:
    """Return what finds the differences of each day, and then of each month."""
    first, last = span_of_log()
    days = range(floor(max(begin, first), DAY), ceiling(min(until, last), DAY), DAY)
    months = sorted({month_minute(day) for day in days})
    return [*(partial(_of_day, day) for day in days), *(partial(_of_month, month) for month in months)]


def _of_month(month: int) -> list[Difference]:
    """Compare the rows of one month with the sums of the keys' days."""
    following = month_minute(month + 31 * DAY)
    days = Rollup.objects.filter(grain=KEY_DAY, start__gte=month, start__lt=following).order_by()
    by_key = days.values_list("account_id", "key_id").annotate(Max("account_name"), Max("key_name"), *map(Sum, COUNTS))
    expected = Sums()
    for account_id, key_id, account, key, *sums in by_key:
        tally = without_histograms([*map(int, sums)])
        expected.add(month_row(month, account_id, key_id), tally, Names(account, key))
    return _compared(expected, dict(_tallies(Rollup.objects.filter(grain=KEY_MONTH, start=month))))


def span_of_log() -> tuple[datetime, datetime]:
    """Return where the log's first complete day (UTC) begins and its last ends; twice EPOCH if it is empty."""
    edges = RequestRecord.objects.aggregate(first=Min("admitted_at"), last=Max("admitted_at"))
    if edges["first"] is None:
        return EPOCH, EPOCH
    first = datetime_of(floor(edges["first"], DAY))
    pruned = pruned_before()
    if has_earlier_rollups(first) or (pruned is not None and pruned > first):
        first += ONE_DAY
    return first, datetime_of(floor(edges["last"], DAY) + DAY)


def has_usage_between(begin: datetime, end: datetime) -> bool:
    """Return whether there are rollups of days in a span, whose first day may have lost records of the log."""
    days = Rollup.objects.filter(
        grain=Rollup.Grain.PLATFORM_DAY, start__gte=floor(begin, DAY), start__lt=floor(end, DAY)
    )
    return days.exists()


def _of_day(day: int) -> list[Difference]:
    """Compare the rows of one day."""
    records = RequestRecord.objects.filter(admitted_at__gte=datetime_of(day), admitted_at__lt=datetime_of(day + DAY))
    rows = Rollup.objects.filter(start__gte=day, start__lt=day + DAY)
    found: list[Difference] = []
    wider = Sums()
    for quarters, kept in _by_key(records, rows):
        expected, of_key = spread(quarters), Sums()
        for row, tally in expected.tallies.items():
            if row.grain != KEY_MONTH:
                sums = of_key if row.grain in (KEY_QUARTER, KEY_DAY) else wider
                sums.add(row, tally, expected.names[row])
        found += _compared(of_key, kept)
    # Minutes are only compared while they are written and kept.
    since = minute_of(timezone.now() - MINUTES_WRITTEN) + 1
    recent = records.filter(admitted_at__gte=datetime_of(since))
    for (minute, *what), tally in log_sums(recent, 1, "endpoint", "model"):
        wider.add(Row(PLATFORM_MINUTE, minute, 0, 0, *what), tally)
    grains = (PLATFORM_QUARTER, PLATFORM_DAY, ACCOUNT_DAY)
    kept_wider = rows.filter(Q(grain__in=grains) | Q(grain=PLATFORM_MINUTE, start__gte=since))
    found += _compared(wider, dict(_tallies(kept_wider)))
    if not found:
        return []
    # If records of this day were pruned meanwhile, its sums mean nothing.
    first, last = span_of_log()
    return found if first <= datetime_of(day) < last else []


def _by_key(records: QuerySet[RequestRecord], rows: QuerySet[Rollup]) -> Iterator[tuple[Sums, dict[Row, Tally]]]:
    """Yield for each key what its records add to its quarter hours, and its stored rows."""
    of_key = ("account_id", "key_id")
    logged = log_sums(records, QUARTER, *of_key, "endpoint", "model", "account_name", "key_name", order=of_key)
    stored = _tallies(rows.filter(grain__in=(KEY_QUARTER, KEY_DAY)).order_by(*of_key))
    # Both are in the order of keys; log_sums has the key after the start.
    ordered = merge(
        ((group[1:3], group, tally) for group, tally in logged),
        ((row[2:4], row, tally) for row, tally in stored),
        key=itemgetter(0),
    )
    for _, lines in groupby(ordered, key=itemgetter(0)):
        sums, kept = Sums(), dict[Row, Tally]()
        for _, group, tally in lines:
            if isinstance(group, Row):
                kept[group] = tally
                continue
            start, account_id, key_id, endpoint, model, account_name, key_name, outcome = group
            row = Row(KEY_QUARTER, start, account_id, key_id, endpoint, model, outcome)
            sums.add(row, tally, Names(account_name, key_name))  # a key that was renamed has several groups
        yield sums, kept


def _tallies(rows: QuerySet[Rollup]) -> Iterator[tuple[Row, Tally]]:
    return decoded(rows.values_list(*READ).iterator(chunk_size=ROWS_AT_A_TIME))


def _compared(expected: Sums, kept: dict[Row, Tally]) -> list[Difference]:
    right = expected.tallies
    return [
        Difference(row, right.get(row), kept.get(row), expected.names.get(row, NOBODY))
        for row in sorted({*right, *kept})
        if right.get(row) != kept.get(row)
    ]


def add_span_arguments(parser: ArgumentParser) -> None:
    """Add --from and --to."""
    form = "YYYY-MM-DD or YYYY-MM-DDTHH:00, in UTC unless it says otherwise; days are taken as a whole"
    parser.add_argument("--from", dest="begin", type=datetime_argument, help=f"{form} (default: where the log begins)")
    parser.add_argument(
        "--to", dest="until", type=datetime_argument, help=f"{form}, excluded (default: where the log ends)"
    )


def span_of(options: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """Return the span by the options; raises CommandError if it is empty."""
    require_order(options["begin"], options["until"])
    first, last = span_of_log()
    return options["begin"] or first, options["until"] or last
