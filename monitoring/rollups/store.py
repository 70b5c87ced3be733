"""Writing rollups: what a record adds to which rows, and the update of these rows under a lock of all writers.

A tally is a list of integers in the order of MEASURES, histograms included. So adding a record, subtracting the one
that it replaces, and adding up tallies are the same operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import structlog
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from core.bulk import delete_lines, insert_lines, select_lines
from core.money import nano
from monitoring.models import RequestRecord, Rollup
from monitoring.records import TIMED, outcome_of
from monitoring.rollups.histograms import one, pack, unpack
from monitoring.rollups.periods import HOUR, Period, hour_of, minute_of, start_of

log = structlog.get_logger(__name__)

#: The columns of a rollup that are sums: counts, then histograms.
COUNTS = (
    "requests",
    "hits",
    "coalesced",
    "misses",
    "bypassed",
    "replayed",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cost",
    "saved_cost",
    "unpriced",
)
HISTOGRAMS = ("latency", "first_token")
MEASURES = (*COUNTS, *HISTOGRAMS)
CACHE_COLUMNS = {
    RequestRecord.Cache.HIT: "hits",
    RequestRecord.Cache.COALESCED: "coalesced",
    RequestRecord.Cache.MISS: "misses",
    RequestRecord.Cache.BYPASS: "bypassed",
    RequestRecord.Cache.REPLAY: "replayed",
}

#: Letters of a grain: first letters beside those of callers (see monitoring.rollups), and the letter of minutes.
TOTAL, PLATFORM, MINUTE = "t", "p", "i"
MINUTE_GRAINS = tuple(str(grain) for grain in Rollup.Grain if grain[1] == MINUTE)
#: The age of records up to which minutes are written, and the age at which minutes are deleted. A record and its
#: replacement have the same time of admission, so both count in its minute or neither does.
MINUTES_WRITTEN, MINUTES_KEPT = 3 * HOUR, 4 * HOUR

_CACHE_PLACES = {str(cache): COUNTS.index(column) for cache, column in CACHE_COLUMNS.items()}
_FIRST_CACHE, _AFTER_CACHE = COUNTS.index("hits"), COUNTS.index("replayed") + 1
_PERIODS = tuple(Period)

Tally = list[int]


class Row(NamedTuple):
    """The primary key of a rollup."""

    grain: str
    start: int
    account_id: int
    key_id: int
    endpoint: str
    model: str
    outcome: str


class Names(NamedTuple):
    """The names of a row's account and key; empty if the row covers all."""

    account: str = ""
    key: str = ""


NOBODY = Names()


class Change(NamedTuple):
    """A record that was written, and the one that it replaced (None if it is new)."""

    old: RequestRecord | None
    new: RequestRecord


def tally_of(record: RequestRecord) -> Tally:
    """Return the tally of one record."""
    timed = outcome_of(record.status) in TIMED
    caches = [0] * (_AFTER_CACHE - _FIRST_CACHE)
    if (place := _CACHE_PLACES.get(str(record.cache))) is not None:
        caches[place - _FIRST_CACHE] = record.count
    return [
        record.count,
        *caches,
        record.input_tokens,
        record.cached_tokens,
        record.output_tokens,
        0 if record.cost is None else nano(record.cost),
        nano(record.saved_cost),
        record.count if record.cost is None else 0,
        one(record.latency_ms) if timed else 0,
        one(record.first_token_ms) if timed and record.first_token_ms is not None else 0,
    ]


def hour_row(record: RequestRecord) -> Row:
    """Return the finest row that a record belongs to: its key's in its hour."""
    return Row(
        "kh",
        hour_of(record.admitted_at),
        record.account_id,
        record.key_id,
        record.endpoint,
        record.model,
        outcome_of(record.status),
    )


def minute_row(record: RequestRecord, hour: Row) -> Row:
    """Return the platform's row of a record's minute; `hour` is the record's hour_row."""
    return Row(PLATFORM + MINUTE, minute_of(record.admitted_at), 0, 0, hour.endpoint, hour.model, hour.outcome)


def total_row(row: Row) -> Row:
    """Return the total that a row of the platform belongs to."""
    return Row(TOTAL + row.grain[1], row.start, 0, 0, "", "", row.outcome)


def tallies_of(
    changes: Iterable[Change], minutes_since: datetime | None = None
) -> tuple[dict[Row, Tally], dict[Row, Names]]:
    """Return what changes of the log add to the finest rows, and the names of these rows.

    The finest rows are the keys' by hour and, for records admitted from `minutes_since` on, the platform's by minute.
    """
    tallies: dict[Row, Tally] = {}
    names: dict[Row, Names] = {}

    def count(record: RequestRecord, row: Row, tally: Tally) -> None:
        add_tally(tallies, row, tally)
        if minutes_since is not None and record.admitted_at >= minutes_since:
            minute = minute_row(record, row)
            add_tally(tallies, minute, tally)
            names[minute] = NOBODY

    for old, new in changes:
        row = hour_row(new)
        count(new, row, tally_of(new))
        names[row] = Names(new.account_name, new.key_name)
        if old is not None:
            replaced = hour_row(old)
            count(old, replaced, [-amount for amount in tally_of(old)])
            names.setdefault(replaced, Names(old.account_name, old.key_name))
    return tallies, names


def spread(tallies: dict[Row, Tally], names: dict[Row, Names]) -> tuple[dict[Row, Tally], dict[Row, Names]]:
    """Return the tallies and names of the finest rows and of all rows that contain them."""
    wide: dict[Row, Tally] = {}
    wide_names: dict[Row, Names] = {}
    for fine, tally in tallies.items():
        for row, named in rows_above(fine, names[fine]):
            add_tally(wide, row, tally)
            wide_names[row] = named
    for row in [row for row in wide if row.grain[0] == PLATFORM]:
        total = total_row(row)
        add_tally(wide, total, wide[row])
        wide_names[total] = NOBODY
    return wide, wide_names


def rows_above(fine: Row, names: Names) -> Iterator[tuple[Row, Names]]:
    """Yield a key's row of an hour and the eight rows that contain it (without totals); a minute's row alone."""
    grain, hour, account, key, *rest = fine
    if grain[1] == MINUTE:
        yield fine, NOBODY
        return
    callers = (("k", account, key, names), ("a", account, 0, Names(names.account)), ("p", 0, 0, NOBODY))
    for period, start in zip(_PERIODS, _starts(hour), strict=True):
        for scope, account_id, key_id, named in callers:
            yield Row(scope + period, start, account_id, key_id, *rest), named


def add_tally(tallies: dict[Row, Tally], row: Row, tally: Tally) -> None:
    """Add a tally to the tally of a row."""
    known = tallies.get(row)
    tallies[row] = tally if known is None else [a + b for a, b in zip(known, tally, strict=True)]


@lru_cache(maxsize=1024)
def _starts(hour: int) -> tuple[int, ...]:
    return tuple(start_of(period, hour) for period in _PERIODS)


#: The key of PostgreSQL's advisory lock for writers of rollups ("rollups" in ASCII).
LOCK = 0x726F6C6C757073
COLUMNS = (*Row._fields, "account_name", "key_name", *MEASURES)
_TABLE = Rollup._meta.db_table
_UPDATES = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS[len(Row._fields) :])
_REPLACE = f"ON CONFLICT ({', '.join(Row._fields)}) DO UPDATE SET {_UPDATES}"


def rollups_apply(changes: Iterable[Change]) -> None:
    """Add changes of the log to the rollups; call it in the transaction of these changes."""
    tallies, names = tallies_of(changes, minutes_since=timezone.now() - MINUTES_WRITTEN)
    changed = {row: tally for row, tally in tallies.items() if any(tally)}
    if changed:
        rollups_add(*spread(changed, names))


def rollups_add(tallies: Mapping[Row, Tally], names: Mapping[Row, Names]) -> None:
    """Add tallies to rows; delete rows whose number of requests becomes 0."""
    with connection.cursor() as cursor:
        rollups_lock(cursor)
        known = _read(cursor, list(tallies))
        sums = {row: _sum(row, known.get(row), tally) for row, tally in tallies.items()}
        rollups_write(cursor, {row: tally for row, tally in sums.items() if tally[0]}, names)
        rollups_delete(cursor, [row for row, tally in sums.items() if not tally[0] and row in known])
        if any(row.grain in MINUTE_GRAINS and row not in known for row in tallies):
            _forget_minutes(cursor)


def _forget_minutes(cursor: CursorWrapper) -> None:
    """Delete old minutes. This runs whenever a minute is new, so no other job is needed."""
    latest = minute_of(timezone.now() - MINUTES_KEPT)
    for grain in MINUTE_GRAINS:
        cursor.execute(f"DELETE FROM {_TABLE} WHERE grain = %s AND start < %s", [grain, latest])  # noqa: S608


def rollups_lock(cursor: CursorWrapper) -> None:
    """Wait for the writers' lock, which is held until the transaction ends. (SQLite has one writer anyway.)"""
    if connection.vendor == "postgresql":
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def rollups_write(cursor: CursorWrapper, tallies: Mapping[Row, Tally], names: Mapping[Row, Names]) -> None:
    """Insert or overwrite rows."""
    lines = [(*row, *names[row], *packed(tally)) for row, tally in tallies.items()]
    insert_lines(cursor, _TABLE, COLUMNS, lines, _REPLACE)


def rollups_delete(cursor: CursorWrapper, rows: Sequence[Row]) -> None:
    """Delete rows."""
    delete_lines(cursor, _TABLE, Row._fields, rows)


def packed(tally: Tally) -> list[Any]:
    """Encode a tally as column values."""
    return [*tally[: len(COUNTS)], *(pack(histogram) for histogram in tally[len(COUNTS) :])]


def unpacked(columns: Sequence[Any]) -> Tally:
    """Decode the column values of a tally."""
    return [*columns[: len(COUNTS)], *(unpack(bytes(histogram)) for histogram in columns[len(COUNTS) :])]


def _sum(row: Row, known: Tally | None, added: Tally) -> Tally:
    if known is not None:
        added = [a + b for a, b in zip(known, added, strict=True)]
    if min(added) < 0:
        # Only if the rollups lacked a record of the log: the nightly check reports it, a rebuild corrects it.
        log.error("rollups_disagree_with_log", row=tuple(row))
        return [max(0, amount) for amount in added]
    return added


def _read(cursor: CursorWrapper, rows: Sequence[Row]) -> dict[Row, Tally]:
    found = select_lines(cursor, _TABLE, Row._fields, rows, (*Row._fields, *MEASURES))
    width = len(Row._fields)
    return {Row(*each[:width]): unpacked(each[width:]) for each in found}
