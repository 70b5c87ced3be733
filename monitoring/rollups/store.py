"""Writes rollups: reads the rows that change, adds what is new, and writes them back, under a lock of all writers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from monitoring.bulk import delete_lines, insert_lines, select_lines
from monitoring.models import Rollup
from monitoring.rollups.histograms import pack, unpack
from monitoring.rollups.periods import minute_of
from monitoring.rollups.tallies import (
    COUNTS,
    MEASURES,
    MINUTE_GRAINS,
    MINUTES_KEPT,
    MINUTES_WRITTEN,
    Change,
    Names,
    Row,
    Tally,
    spread,
    tallies_of,
)

#: Names the lock of all that write rollups, among PostgreSQL's advisory locks ("rollups" in ASCII).
LOCK = 0x726F6C6C757073
COLUMNS = (*Row._fields, "account_name", "key_name", *MEASURES)
_TABLE = Rollup._meta.db_table
_UPDATES = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS[len(Row._fields) :])
_REPLACE = f"ON CONFLICT ({', '.join(Row._fields)}) DO UPDATE SET {_UPDATES}"

log = structlog.get_logger(__name__)


def rollups_apply(changes: Iterable[Change]) -> None:
    """Put changes of the log into the rollups; call it in the transaction that made them."""
    tallies, names = tallies_of(changes, minutes_since=timezone.now() - MINUTES_WRITTEN)
    changed = {row: tally for row, tally in tallies.items() if any(tally)}
    if changed:
        rollups_add(*spread(changed, names))


def rollups_add(tallies: Mapping[Row, Tally], names: Mapping[Row, Names]) -> None:
    """Add tallies to rows; a row that stands for no request any more is deleted."""
    with connection.cursor() as cursor:
        rollups_lock(cursor)
        known = _read(cursor, list(tallies))
        sums = {row: _sum(row, known.get(row), tally) for row, tally in tallies.items()}
        rollups_write(cursor, {row: tally for row, tally in sums.items() if tally[0]}, names)
        rollups_delete(cursor, [row for row, tally in sums.items() if not tally[0] and row in known])
        if any(row.grain in MINUTE_GRAINS and row not in known for row in tallies):
            _forget_minutes(cursor)


def _forget_minutes(cursor: CursorWrapper) -> None:
    """Delete the minutes that nobody reads any more: whenever one is new, so that it needs nobody else."""
    latest = minute_of(timezone.now() - MINUTES_KEPT)
    for grain in MINUTE_GRAINS:
        cursor.execute(f"DELETE FROM {_TABLE} WHERE grain = %s AND start < %s", [grain, latest])  # noqa: S608


def rollups_lock(cursor: CursorWrapper) -> None:
    """Wait for the turn to write; it lasts until the transaction ends. (SQLite has one writer at a time by itself.)"""
    if connection.vendor == "postgresql":
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def rollups_write(cursor: CursorWrapper, tallies: Mapping[Row, Tally], names: Mapping[Row, Names]) -> None:
    """Write rows as they are given, over those that are there."""
    lines = [(*row, *names[row], *packed(tally)) for row, tally in tallies.items()]
    insert_lines(cursor, _TABLE, COLUMNS, lines, _REPLACE)


def rollups_delete(cursor: CursorWrapper, rows: Sequence[Row]) -> None:
    """Delete rows."""
    delete_lines(cursor, _TABLE, Row._fields, rows)


def packed(tally: Tally) -> list[Any]:
    """Return a tally as its columns hold it."""
    return [*tally[: len(COUNTS)], *(pack(histogram) for histogram in tally[len(COUNTS) :])]


def unpacked(columns: Sequence[Any]) -> Tally:
    """Return the tally that a row's columns hold."""
    return [*columns[: len(COUNTS)], *(unpack(bytes(histogram)) for histogram in columns[len(COUNTS) :])]


def _sum(row: Row, known: Tally | None, added: Tally) -> Tally:
    if known is not None:
        added = [a + b for a, b in zip(known, added, strict=True)]
    if min(added) < 0:
        # Only where the rollups lacked a record that the log had: the nightly check tells, a rebuild mends.
        log.error("rollups_disagree_with_log", row=tuple(row))
        return [max(0, amount) for amount in added]
    return added


def _read(cursor: CursorWrapper, rows: Sequence[Row]) -> dict[Row, Tally]:
    found = select_lines(cursor, _TABLE, Row._fields, rows, (*Row._fields, *MEASURES))
    width = len(Row._fields)
    return {Row(*each[:width]): unpacked(each[width:]) for each in found}
