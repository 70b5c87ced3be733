"""Makes rollups anew from the log, while others write to both; and says where the two disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from monitoring.models import Rollup
from monitoring.one_moment import one_moment
from monitoring.rollups.periods import Period, moment_of, moment_of_minute, start_of
from monitoring.rollups.store import rollups_delete, rollups_lock, rollups_write
from monitoring.rollups.sweep import Step, span_of_log, sweep
from monitoring.rollups.tallies import HISTOGRAMS, MEASURES, MINUTE_GRAIN, Names, Row, Tally

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
        moment = moment_of_minute(start) if grain == MINUTE_GRAIN else moment_of(start)
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
        yield from found


def rollups_fill() -> int:
    """Make the rollups of a log that has none, because an earlier release wrote it; return how many rows they are."""
    begin, until = span_of_log()
    month = start_of(Period.MONTH, begin)
    # The platform's months are made last: without that of the oldest record, an earlier attempt was broken off.
    if begin == until or Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_MONTH, start=month).exists():
        return 0
    return sum(1 for _ in rollups_rebuild(begin, until))


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


def _write(cursor: CursorWrapper, step: Step, wrong: list[Difference], names: Mapping[Row, Names]) -> list[Difference]:
    """Write what rows should be, except of a span whose records are being pruned meanwhile."""
    if step.source is None and step.begin < span_of_log()[0]:
        return []
    right = {each.row: each.expected for each in wrong if each.expected is not None}
    rollups_write(cursor, right, names)
    rollups_delete(cursor, [each.row for each in wrong if each.expected is None])
    return wrong
