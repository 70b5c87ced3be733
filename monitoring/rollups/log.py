"""The sums of the log, as rollups should have them: for their verification, and for minutes that no rollup has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db.models import (
    BigIntegerField,
    Case,
    CharField,
    F,
    Func,
    IntegerField,
    Q,
    QuerySet,
    Sum,
    TextField,
    Value,
    When,
)
from django.db.models.functions import Cast, Round

from core.money import NANO_DOLLARS
from monitoring.models import OUTCOMES, TIMED, RequestRecord
from monitoring.rollups.histograms import Joined, of_texts
from monitoring.rollups.store import CACHE_COLUMNS, COUNTS, HISTOGRAMS, Tally

ROWS_AT_A_TIME = 2000


class Minute(Func):
    """The minute (see monitoring.rollups.periods) of a datetime."""

    template = "FLOOR(EXTRACT(EPOCH FROM %(expressions)s) / 60)::int"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        """SQLite has no EXTRACT."""
        return self.as_sql(compiler, connection, template="CAST(strftime('%%%%s', %(expressions)s) AS INTEGER) / 60")


def _nano(column: str) -> Sum:
    # Rounded by record: SQLite has floats, whose sums would not be exact.
    return Sum(Cast(Round(F(column) * Value(NANO_DOLLARS)), BigIntegerField()), default=0)


_SUMS = {
    "requests": Sum("count"),
    **{column: Sum("count", filter=Q(cache=cache), default=0) for cache, column in CACHE_COLUMNS.items()},
    **{column: Sum(column) for column in COUNTS if column.endswith("_tokens")},
    "cost": _nano("cost"),
    "saved_cost": _nano("saved_cost"),
    "unpriced": Sum("count", filter=Q(cost=None), default=0),
}
_OUTCOMES = (When(condition, then=Value(str(outcome))) for outcome, condition in OUTCOMES.items())
_OUTCOME = Case(*_OUTCOMES, output_field=CharField())


def log_sums(
    records: QuerySet[RequestRecord], length: int, *columns: str, order: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Tally]]:
    """Add up records by period (its length in minutes), columns and outcome; yield (start, *columns, outcome), tally.

    `order` are columns by which the sums are ordered.
    """
    start = Minute("admitted_at") / length * length
    grouped = records.order_by().annotate(start=start, outcome=_OUTCOME).values_list("start", *columns, "outcome")
    summed = grouped.annotate(
        **{f"sum_{name}": _SUMS[name] for name in COUNTS},
        **{name: Joined(Cast(f"{name}_ms", TextField())) for name in HISTOGRAMS},
    )
    width = len(columns) + 2
    for row in summed.order_by(*order).iterator(chunk_size=ROWS_AT_A_TIME):
        is_timed = row[width - 1] in TIMED
        times = [of_texts(texts) if texts and is_timed else 0 for texts in row[-len(HISTOGRAMS) :]]
        yield row[:width], [*map(int, row[width : -len(HISTOGRAMS)]), *times]


def log_totals(records: QuerySet[RequestRecord]) -> tuple[int, int]:
    """Return the number of requests of records, and their known cost (nano-dollars)."""
    sums = records.order_by().aggregate(**{f"sum_{name}": _SUMS[name] for name in ("requests", "cost")})
    return int(sums["sum_requests"] or 0), int(sums["sum_cost"] or 0)


def requests_by_period(records: QuerySet[RequestRecord], length: int) -> list[tuple[int, str, int]]:
    """Return the requests of records by period (its first minute, its length in minutes) and outcome."""
    start = Minute("admitted_at") / length * length
    grouped = records.order_by().annotate(start=start, outcome=_OUTCOME).values_list("start", "outcome")
    return list(grouped.annotate(Sum("count")))
