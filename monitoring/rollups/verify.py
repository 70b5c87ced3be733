"""Compares rollups with the log, or rebuilds them from it, while other processes write to both.

A span is processed in steps. A step covers the rows of one grain in a part of the span and of the accounts that fits
into memory. The keys' rows by hour and the rows of minutes are computed from the log, all others from the rows that
they contain; steps are ordered accordingly.

The arguments `--from` and `--to` of the commands about rollups are defined here too.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import Max, Min, QuerySet, Sum
from django.utils import timezone

from core.database import repeatable_read
from core.times import datetime_argument, require_order
from monitoring.export import Selection
from monitoring.models import RequestRecord, Rollup
from monitoring.retention import has_earlier_rollups, pruned_before
from monitoring.rollups.periods import (
    DAY,
    HOUR,
    Period,
    end_of,
    hour_of,
    minute_of,
    moment_of,
    moment_of_minute,
    start_of,
)
from monitoring.rollups.store import (
    COUNTS,
    HISTOGRAMS,
    MEASURES,
    MINUTE,
    MINUTE_GRAINS,
    MINUTES_KEPT,
    MINUTES_WRITTEN,
    TOTAL,
    Change,
    Names,
    Row,
    Tally,
    add_tally,
    rollups_delete,
    rollups_lock,
    rollups_write,
    tallies_of,
    total_row,
    unpacked,
)

#: Attempts at a step without the lock, if others write meanwhile; the next attempt holds the lock.
TRIES = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is wrong: the tally it should have and the one it has; None for no row."""

    row: Row
    expected: Tally | None
    kept: Tally | None

    def __str__(self) -> str:
        grain, start, account_id, key_id, *what = self.row
        moment = moment_of_minute(start) if grain in MINUTE_GRAINS else moment_of(start)
        where = f"{Rollup.Grain(grain).label.lower()} {moment:%Y-%m-%d %H:%M}"
        whose = f"account {account_id} key {key_id} {' '.join(part for part in what if part)}"
        nothing = [0] * len(MEASURES)
        pairs = zip(MEASURES, self.kept or nothing, self.expected or nothing, strict=True)
        wrong = [
            f"{name} {kept} instead of {expected}" if name not in HISTOGRAMS else name
            for name, kept, expected in pairs
            if kept != expected
        ]
        return f"{where}, {whose}: {', '.join(wrong)}"


def rollups_rebuild(begin: int, until: int) -> Iterator[Difference]:
    """Correct the rollups of a span of hours, step by step; yield what was wrong.

    Each step is a transaction. It reads without the lock, and writes under the lock if its rows are unchanged since.
    Every change of the log changes these rows, so then the log is unchanged too.
    """
    for step in sweep(begin, until):
        yield from _mended(step)


def rollups_differences(begin: int, until: int) -> Iterator[Difference]:
    """Compare the rollups of a span of hours with the log; yield what is wrong, and change nothing.

    Each step reads one snapshot of the database, in which log and rollups agree.
    """
    for step in sweep(begin, until):
        with repeatable_read():
            found = _differences(step.expected()[0], step.kept())
        yield from _still_logged(step, found)


def rollups_fill() -> int:
    """Write the rollups that an earlier release did not write; return the number of rows.

    These are all rollups of a log without any, and the totals of rollups without totals.
    """
    begin, until = span_of_log()
    month = start_of(Period.MONTH, begin)
    made = 0
    # The platform's months are written last: if the first one is missing, an earlier attempt was interrupted.
    if begin < until and not Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_MONTH, start=month).exists():
        made = sum(1 for _ in rollups_rebuild(begin, until))
    return made + sum(len(_mended(step)) for step in _steps_of_totals())


def _steps_of_totals() -> Iterator[Step]:
    """Yield the steps of months whose totals differ from the sum of the platform's rows, and of all minutes.

    It does not suffice to find months without totals: an earlier release may have written after a later one.
    """
    platform, totals = _by_outcome(Rollup.Grain.PLATFORM_MONTH), _by_outcome(Rollup.Grain.TOTAL_MONTH)
    wrong = {place for place in {*platform, *totals} if platform.get(place) != totals.get(place)}
    for month in sorted({month for month, _ in wrong}):
        yield from sweep_totals(month, end_of(Period.MONTH, month))
    now = timezone.now()
    first, last = minute_of(now - MINUTES_KEPT), minute_of(now + HOUR)
    yield Step(Rollup.Grain.TOTAL_MINUTE, first, last, source=Rollup.Grain.PLATFORM_MINUTE)


def _by_outcome(grain: str) -> dict[tuple[int, str], list[int]]:
    """Return the sums of a grain's rows by start and outcome, without histograms."""
    rows = Rollup.objects.filter(grain=grain).order_by().values_list("start", "outcome").annotate(*map(Sum, COUNTS))
    return {(start, outcome): sums for start, outcome, *sums in rows}


def _mended(step: Step) -> list[Difference]:
    for _ in range(TRIES):
        kept = step.kept()
        tallies, names = step.expected()
        wrong = _differences(tallies, kept)
        if not wrong:
            return []
        with transaction.atomic(), connection.cursor() as cursor:
            rollups_lock(cursor)
            if step.kept() == kept:
                return _write(cursor, step, wrong, names)
    with transaction.atomic(), connection.cursor() as cursor:
        rollups_lock(cursor)
        tallies, names = step.expected()
        return _write(cursor, step, _differences(tallies, step.kept()), names)


def _differences(expected: Mapping[Row, Tally], kept: Mapping[Row, Tally]) -> list[Difference]:
    rows = sorted({*expected, *kept})
    return [Difference(row, expected.get(row), kept.get(row)) for row in rows if expected.get(row) != kept.get(row)]


def _still_logged(step: Step, wrong: list[Difference]) -> list[Difference]:
    """Leave out differences in hours whose records have been pruned meanwhile."""
    if not wrong or step.grain != Rollup.Grain.KEY_HOUR:
        return wrong
    begin, until = span_of_log()
    return [each for each in wrong if begin <= each.row.start < until]


def _write(cursor: CursorWrapper, step: Step, wrong: list[Difference], names: Mapping[Row, Names]) -> list[Difference]:
    """Write the expected rows, and return what was wrong."""
    wrong = _still_logged(step, wrong)
    right = {each.row: each.expected for each in wrong if each.expected is not None}
    rollups_write(cursor, right, names)
    rollups_delete(cursor, [each.row for each in wrong if each.expected is None])
    return wrong


#: From this many records of an account on, its span is divided: into halves down to days, then into hours.
MANY = 20_000
ROWS_AT_A_TIME = 2000

Grain = Rollup.Grain
Sums = tuple[dict[Row, Tally], dict[Row, Names]]


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of a grain that start in a span (`until` excluded), of one account or of the platform (0).

    The span is in hours; for rows of minutes, in minutes.
    """

    grain: str
    begin: int
    until: int
    account_id: int = 0
    source: str | None = None  # the grain that the rows are computed from; None: the log

    def kept(self) -> dict[Row, Tally]:
        """Read the stored rows."""
        return {Row(*line[:-1]): line[-1] for line in _lines(self._rows(self.grain))}

    def expected(self) -> Sums:
        """Compute what the rows should be."""
        if self.grain == Grain.PLATFORM_MINUTE:
            return self._minutes()
        if self.source is None:
            return tallies_of(Change(None, record) for record in self._records())
        tallies: dict[Row, Tally] = {}
        names: dict[Row, Names] = {}
        for *fine, account_name, key_name, tally in _lines(self._rows(self.source), "account_name", "key_name"):
            row = self._above(Row(*fine))
            add_tally(tallies, row, tally)
            names[row] = Names(account_name if row.account_id else "", key_name if row.key_id else "")
        return tallies, names

    def _above(self, row: Row) -> Row:
        scope, period = self.grain[0], self.grain[1]
        start = row.start if period == MINUTE else start_of(Period(period), row.start)
        if scope == TOTAL:
            return total_row(row)._replace(grain=self.grain, start=start)
        return row._replace(
            grain=self.grain,
            start=start,
            account_id=0 if scope == "p" else row.account_id,
            key_id=row.key_id if scope == "k" else 0,
        )

    def _rows(self, grain: str) -> QuerySet[Rollup]:
        rows = Rollup.objects.filter(grain=grain, start__gte=self.begin, start__lt=self.until)
        return rows.filter(account_id=self.account_id) if self.account_id else rows

    def _minutes(self) -> Sums:
        begin, until = moment_of_minute(self.begin), moment_of_minute(self.until)
        records = Selection(begin, until).records().order_by("admitted_at").iterator(chunk_size=ROWS_AT_A_TIME)
        tallies, names = tallies_of((Change(None, record) for record in records), minutes_since=begin)
        own = [row for row in tallies if row.grain == Grain.PLATFORM_MINUTE]
        return {row: tallies[row] for row in own}, {row: names[row] for row in own}

    def _records(self) -> Iterator[RequestRecord]:
        records = logged(self.account_id, self.begin, self.until)
        return records.order_by("admitted_at").iterator(chunk_size=ROWS_AT_A_TIME)


def sweep(begin: int, until: int) -> Iterator[Step]:
    """Yield the steps of a span of hours, as far as the log goes back.

    Days and months that are partly in the span are computed as a whole.
    """
    first, last = span_of_log()
    begin, until = max(begin, first), min(until, last)
    if begin >= until:
        return
    days, months = list(_starts(Period.DAY, begin, until)), list(_starts(Period.MONTH, begin, until))
    for account_id in _accounts():
        yield from _account_span(account_id, begin, until)
        for month in months:
            following = end_of(Period.MONTH, month)
            yield Step(Grain.KEY_MONTH, month, following, account_id, Grain.KEY_DAY)
            yield Step(Grain.ACCOUNT_MONTH, month, following, account_id, Grain.KEY_MONTH)
    for day in days:
        first, last = max(begin, day), min(until, day + DAY)
        yield Step(Grain.PLATFORM_HOUR, first, last, source=Grain.ACCOUNT_HOUR)
        yield Step(Grain.PLATFORM_DAY, day, day + DAY, source=Grain.PLATFORM_HOUR)
    for month in months:
        yield Step(Grain.PLATFORM_MONTH, month, end_of(Period.MONTH, month), source=Grain.PLATFORM_DAY)
    yield from sweep_totals(begin, until)
    for hour in range(max(begin, hour_of(timezone.now() - MINUTES_WRITTEN) + 1), until):
        first, last = minute_of(moment_of(hour)), minute_of(moment_of(hour + 1))
        yield Step(Grain.PLATFORM_MINUTE, first, last)
        yield Step(Grain.TOTAL_MINUTE, first, last, source=Grain.PLATFORM_MINUTE)


def sweep_totals(begin: int, until: int) -> Iterator[Step]:
    """Yield the steps of the totals in a span of hours, which are computed from the platform's rows."""
    for day in _starts(Period.DAY, begin, until):
        yield Step(Grain.TOTAL_HOUR, max(begin, day), min(until, day + DAY), source=Grain.PLATFORM_HOUR)
        yield Step(Grain.TOTAL_DAY, day, day + DAY, source=Grain.TOTAL_HOUR)
    for month in _starts(Period.MONTH, begin, until):
        yield Step(Grain.TOTAL_MONTH, month, end_of(Period.MONTH, month), source=Grain.TOTAL_DAY)


def span_of_log() -> tuple[int, int]:
    """Return the first complete hour of the log and the hour after its last; (0, 0) if the log is empty.

    If rollups go back further, or records were pruned up to that hour, the oldest record's hour may be incomplete.
    """
    edges = [
        logged(account_id).aggregate(first=Min("admitted_at"), last=Max("admitted_at")) for account_id in _callers()
    ]
    found = [(hour_of(each["first"]), hour_of(each["last"]) + 1) for each in edges if each["first"]]
    if not found:
        return 0, 0
    first, last = min(first for first, _ in found), max(last for _, last in found)
    return first + _was_pruned(first), last


def _was_pruned(first: int) -> bool:
    """Return whether records of the log's first hour may have been deleted."""
    if has_earlier_rollups(first):
        return True
    pruned = pruned_before()
    return pruned is not None and pruned > moment_of(first)


def logged(account_id: int, begin: int | None = None, until: int | None = None) -> QuerySet[RequestRecord]:
    """Return an account's records of a span of hours; they have an index."""
    records = RequestRecord.objects.filter(account_id=account_id)
    if begin is not None:
        records = records.filter(admitted_at__gte=moment_of(begin))
    return records if until is None else records.filter(admitted_at__lt=moment_of(until))


def _account_span(account_id: int, begin: int, until: int) -> Iterator[Step]:
    """Yield the steps of an account's span of hours; the span is divided if it has many records."""
    days = list(_starts(Period.DAY, begin, until))
    is_busy = logged(account_id, begin, until).order_by()[:MANY].count() == MANY
    if is_busy and len(days) > 1:
        middle = days[len(days) // 2]
        yield from _account_span(account_id, begin, middle)
        yield from _account_span(account_id, middle, until)
        return
    for start, end in [(hour, hour + 1) for hour in range(begin, until)] if is_busy else [(begin, until)]:
        yield Step(Grain.KEY_HOUR, start, end, account_id)
    first, last = days[0], days[-1] + DAY
    yield Step(Grain.ACCOUNT_HOUR, begin, until, account_id, Grain.KEY_HOUR)
    yield Step(Grain.KEY_DAY, first, last, account_id, Grain.KEY_HOUR)
    yield Step(Grain.ACCOUNT_DAY, first, last, account_id, Grain.KEY_DAY)


def _accounts() -> list[int]:
    """Return the ids of the accounts in log and rollups, sorted."""
    kept = Rollup.objects.filter(grain=Grain.ACCOUNT_MONTH).order_by().values_list("account_id", flat=True).distinct()
    return sorted({*_callers(), *kept})


def _callers() -> Iterator[int]:
    """Yield the ids of the accounts in the log, one index lookup each: DISTINCT would read the whole log."""
    latest = -1
    while True:
        beyond = RequestRecord.objects.filter(account_id__gt=latest).order_by("account_id")
        found = beyond.values_list("account_id", flat=True).first()
        if found is None:
            return
        yield found
        latest = found


def _starts(period: Period, begin: int, until: int) -> Iterator[int]:
    """Yield the starts of the periods that a span of hours touches."""
    start = start_of(period, begin)
    while start < until:
        yield start
        start = end_of(period, start)


def _lines(rows: QuerySet[Rollup], *more: str) -> Iterator[list[Any]]:
    """Yield the columns of Row, `more`, and the tally of each row."""
    size = len(Row._fields) + len(more)
    for line in rows.values_list(*Row._fields, *more, *MEASURES).iterator(chunk_size=ROWS_AT_A_TIME):
        yield [*line[:size], unpacked(line[size:])]


INSTANT = timedelta(microseconds=1)


def add_span_arguments(parser: ArgumentParser) -> None:
    """Add --from and --to."""
    form = "YYYY-MM-DD or YYYY-MM-DDTHH:00, in UTC unless it says otherwise"
    parser.add_argument("--from", dest="begin", type=datetime_argument, help=f"{form} (default: where the log begins)")
    parser.add_argument(
        "--to", dest="until", type=datetime_argument, help=f"{form}, excluded (default: where the log ends)"
    )


def span_of(options: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first hour and the hour after the last by the options; raises CommandError if they are reversed."""
    first, last = span_of_log()
    begin, until = options["begin"], options["until"]
    require_order(begin, until)
    return (first if begin is None else hour_of(begin)), (last if until is None else hour_of(until - INSTANT) + 1)
