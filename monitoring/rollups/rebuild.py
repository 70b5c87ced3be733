"""Makes rollups anew from the log, while others write to both; and says where the two disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import Sum
from django.utils import timezone

from monitoring.models import Rollup
from monitoring.one_moment import one_moment
from monitoring.rollups.periods import HOUR, Period, end_of, minute_of, moment_of, moment_of_minute, start_of
from monitoring.rollups.store import rollups_delete, rollups_lock, rollups_write
from monitoring.rollups.sweep import Step, span_of_log, sweep, sweep_totals
from monitoring.rollups.tallies import COUNTS, HISTOGRAMS, MEASURES, MINUTE_GRAINS, MINUTES_KEPT, Names, Row, Tally

#: How often a step is read anew because somebody wrote meanwhile, before the writers have to wait for it.
TRIES = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not what it should be; None where there is no row, or should be none."""

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
    """Mend the rollups of a span of hours, step by step, and yield what was wrong.

    Each step is a transaction. It reads without a lock, and writes under it if what it would write over is still as it
    was: every change of the log changes the rows that are compared, so the log that was read is still right, too.
    """
    for step in sweep(begin, until):
        yield from _mended(step)


def rollups_differences(begin: int, until: int) -> Iterator[Difference]:
    """Compare the rollups of a span of hours with the log, and yield what is wrong, without mending it.

    Each step sees one moment of the database, of which log and rollups are written together.
    """
    for step in sweep(begin, until):
        with one_moment():
            found = _differences(step.expected()[0], step.kept())
        yield from _still_logged(step, found)


def rollups_fill() -> int:
    """Make the rollups that an earlier release did not write; return how many rows they are.

    Those of a log that has none, and the totals of those that it made.
    """
    begin, until = span_of_log()
    month = start_of(Period.MONTH, begin)
    made = 0
    # The platform's months are made last: without that of the oldest record, an earlier attempt was broken off.
    if begin < until and not Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_MONTH, start=month).exists():
        made = sum(1 for _ in rollups_rebuild(begin, until))
    return made + sum(len(_mended(step)) for step in _steps_of_totals())


def _steps_of_totals() -> Iterator[Step]:
    """List the steps of months whose totals are not what the platform's rows add up to, and of all minutes.

    Not just of months that have none: whoever wrote without totals may have done so after others wrote them.
    """
    platform, totals = _by_outcome(Rollup.Grain.PLATFORM_MONTH), _by_outcome(Rollup.Grain.TOTAL_MONTH)
    wrong = {place for place in {*platform, *totals} if platform.get(place) != totals.get(place)}
    for month in sorted({month for month, _ in wrong}):
        yield from sweep_totals(month, end_of(Period.MONTH, month))
    now = timezone.now()
    first, last = minute_of(now - MINUTES_KEPT), minute_of(now + HOUR)
    yield Step(Rollup.Grain.TOTAL_MINUTE, first, last, source=Rollup.Grain.PLATFORM_MINUTE)


def _by_outcome(grain: str) -> dict[tuple[int, str], list[int]]:
    """Add up a grain's rows by where they start and by outcome, all but the histograms."""
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
    """Leave out what was found of hours whose records have been pruned since, which may be all that there were."""
    if not wrong or step.grain != Rollup.Grain.KEY_HOUR:
        return wrong
    begin, until = span_of_log()
    return [each for each in wrong if begin <= each.row.start < until]


def _write(cursor: CursorWrapper, step: Step, wrong: list[Difference], names: Mapping[Row, Names]) -> list[Difference]:
    """Write what rows should be."""
    wrong = _still_logged(step, wrong)
    right = {each.row: each.expected for each in wrong if each.expected is not None}
    rollups_write(cursor, right, names)
    rollups_delete(cursor, [each.row for each in wrong if each.expected is None])
    return wrong
