"""Writing rollups: what a record adds to which rows, and the update of these rows under a lock of all writers.

A tally is a list of integers in the order of MEASURES, histograms included. So adding a record, subtracting the one
that it replaces, and adding up tallies are the same operation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from core.bulk import delete_lines, insert_lines, select_lines
from core.money import nano
from monitoring.models import TIMED, RequestRecord, Rollup, outcome_of
from monitoring.rollups.histograms import one, pack, unpack
from monitoring.rollups.periods import DAY, HOUR, QUARTER, minute_of, month_minute

log = structlog.get_logger(__name__)

#: Plain strings: psycopg would write the name of an enum's member.
PLATFORM_MINUTE, PLATFORM_QUARTER, PLATFORM_DAY, ACCOUNT_DAY, KEY_QUARTER, KEY_DAY, KEY_MONTH = map(str, Rollup.Grain)

CACHE_COLUMNS = {
    RequestRecord.Cache.HIT: "hits",
    RequestRecord.Cache.COALESCED: "coalesced",
    RequestRecord.Cache.MISS: "misses",
    RequestRecord.Cache.BYPASS: "bypassed",
    RequestRecord.Cache.REPLAY: "replayed",
}
#: The columns of a rollup that are sums: counts, then histograms.
COUNTS = (
    "requests",
    *CACHE_COLUMNS.values(),
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost",
    "saved_cost",
    "unpriced",
)
HISTOGRAMS = ("latency", "first_token")
MEASURES = (*COUNTS, *HISTOGRAMS)

#: The age of records up to which minutes are written, and the age at which minutes are deleted. A record and its
#: replacement have the same time of admission, so both count in its minute or neither does.
MINUTES_WRITTEN, MINUTES_KEPT = 3 * HOUR, 4 * HOUR

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
    """A record that was written (None: deleted), and the one that it replaced (None if it is new)."""

    old: RequestRecord | None
    new: RequestRecord | None


def tally_of(record: RequestRecord) -> Tally:
    """Return the tally of one record."""
    timed = outcome_of(record.status) in TIMED
    return [
        record.count,
        *(record.count if record.cache == cache else 0 for cache in CACHE_COLUMNS),
        record.input_tokens,
        record.cached_tokens,
        record.output_tokens,
        record.cache_write_tokens,
        record.reasoning_tokens,
        0 if record.cost is None else nano(record.cost),
        nano(record.saved_cost),
        record.count if record.cost is None else 0,
        one(record.latency_ms) if timed else 0,
        one(record.first_token_ms) if timed and record.first_token_ms is not None else 0,
    ]


@dataclass(slots=True)
class Sums:
    """Tallies by row, and the names of the rows' accounts and keys."""

    tallies: dict[Row, Tally] = field(default_factory=dict)
    names: dict[Row, Names] = field(default_factory=dict)

    def add(self, row: Row, tally: Tally, names: Names = NOBODY) -> None:
        """Add a tally to that of a row."""
        known = self.tallies.get(row)
        self.tallies[row] = tally if known is None else [a + b for a, b in zip(known, tally, strict=True)]
        self.names[row] = names


def sums_of(changes: Iterable[Change], minutes_since: datetime | None = None) -> Sums:
    """Return what changes of the log add to the finest rows.

    The finest rows are the keys' by quarter hour and, for records admitted from `minutes_since` on, the platform's by
    minute.
    """
    sums = Sums()
    for change in changes:
        for record, sign in ((change.new, 1), (change.old, -1)):
            if record is None:
                continue
            tally = tally_of(record) if sign > 0 else [-amount for amount in tally_of(record)]
            what = record.endpoint, record.model, outcome_of(record.status)
            minute = minute_of(record.admitted_at)
            row = Row(KEY_QUARTER, minute - minute % QUARTER, record.account_id, record.key_id, *what)
            sums.add(row, tally, Names(record.account_name, record.key_name))
            if minutes_since is not None and record.admitted_at >= minutes_since:
                sums.add(Row(PLATFORM_MINUTE, minute, 0, 0, *what), tally)
    return sums


def spread(fine: Sums) -> Sums:
    """Return the sums of the finest rows and of all rows that contain them: no row contains a platform's minute."""
    wide = Sums()
    for row, tally in fine.tallies.items():
        names = fine.names[row]
        wide.add(row, tally, names)
        if row.grain == PLATFORM_MINUTE:
            continue
        _, start, account_id, key_id, *what = row
        day = start - start % DAY
        wide.add(Row(KEY_DAY, day, account_id, key_id, *what), tally, names)
        wide.add(month_row(day, account_id, key_id), without_histograms(tally), names)
        wide.add(Row(ACCOUNT_DAY, day, account_id, 0, *what), tally, Names(names.account))
        wide.add(Row(PLATFORM_QUARTER, start, 0, 0, *what), tally)
        wide.add(Row(PLATFORM_DAY, day, 0, 0, *what), tally)
    return wide


def month_row(minute: int, account_id: int, key_id: int) -> Row:
    """Return the row of a key's month (UTC) that a minute is in: of all endpoints, models and outcomes."""
    return Row(KEY_MONTH, month_minute(minute), account_id, key_id, "", "", "")


def without_histograms(tally: Tally) -> Tally:
    """Return a tally with empty histograms."""
    return [*tally[: len(COUNTS)], *[0] * len(HISTOGRAMS)]


#: The key of PostgreSQL's advisory lock for writers of rollups ("rollups" in ASCII).
LOCK = 0x726F6C6C757073
READ = (*Row._fields, *MEASURES)
COLUMNS = (*Row._fields, "account_name", "key_name", *MEASURES)
_TABLE = Rollup._meta.db_table
_UPDATES = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS[len(Row._fields) :])
_REPLACE = f"ON CONFLICT ({', '.join(Row._fields)}) DO UPDATE SET {_UPDATES}"


def rollups_apply(changes: Iterable[Change]) -> None:
    """Add changes of the log to the rollups; call it in the transaction of these changes."""
    sums = sums_of(changes, minutes_since=timezone.now() - MINUTES_WRITTEN)
    sums.tallies = {row: tally for row, tally in sums.tallies.items() if any(tally)}
    if sums.tallies:
        rollups_add(spread(sums))


def rollups_add(added: Sums) -> None:
    """Add sums to rows; delete rows whose number of requests becomes 0."""
    with connection.cursor() as cursor:
        rollups_lock(cursor)
        known = dict(decoded(select_lines(cursor, _TABLE, Row._fields, list(added.tallies), READ)))
        tallies: dict[Row, Tally] = {}
        for row, tally in added.tallies.items():
            sums = [a + b for a, b in zip(known[row], tally, strict=True)] if row in known else tally
            if min(sums) < 0:
                # Only if the rollups lacked a record of the log: the nightly check reports it, a rebuild corrects it.
                log.error("rollups_disagree_with_log", row=tuple(row))
                sums = [max(0, amount) for amount in sums]
            tallies[row] = sums
        rollups_write(cursor, {row: tally for row, tally in tallies.items() if tally[0]}, added.names)
        rollups_delete(cursor, [row for row, tally in tallies.items() if not tally[0] and row in known])
        if any(row.grain == PLATFORM_MINUTE and row not in known for row in tallies):
            # Whenever a minute is new, old ones are deleted, so no other job is needed.
            latest = minute_of(timezone.now() - MINUTES_KEPT)
            cursor.execute(f"DELETE FROM {_TABLE} WHERE grain = %s AND start < %s", [PLATFORM_MINUTE, latest])  # noqa: S608


def rollups_forget(account_ids: Collection[int]) -> None:
    """Delete what rollups have left of accounts whose records are gone, and take it out of the platform's rows.

    Of days whose keys' quarter hours were pruned, the accounts' quarter hours are not known any more. What others have
    in the same endpoint, model and outcome of such a day is added up in its first quarter hour.
    """
    less, pruned = Sums(), Sums()
    for row, tally in decoded(Rollup.objects.filter(account_id__in=account_ids).values_list(*READ)):
        amounts = [-amount for amount in tally]
        less.add(row, amounts)
        if row.grain == ACCOUNT_DAY:
            less.add(row._replace(grain=PLATFORM_DAY, account_id=0), amounts)
            pruned.add(row._replace(grain=PLATFORM_QUARTER, account_id=0), amounts)
        elif row.grain == KEY_QUARTER:
            quarter = row._replace(grain=PLATFORM_QUARTER, account_id=0, key_id=0)
            less.add(quarter, amounts)
            pruned.add(quarter._replace(start=row.start - row.start % DAY), tally)
    for first, amounts in pruned.tallies.items():
        if any(amounts):
            day = {"start__gte": first.start, "start__lt": first.start + DAY}
            what = {"endpoint": first.endpoint, "model": first.model, "outcome": first.outcome}
            quarters = Rollup.objects.filter(grain=PLATFORM_QUARTER, **day, **what)
            less.add(first, amounts)
            for row, tally in decoded(quarters.values_list(*READ)):
                less.add(row, [-amount for amount in tally])
                less.add(first, tally)
    if less.tallies:
        rollups_add(less)


def rollups_lock(cursor: CursorWrapper) -> None:
    """Wait for the writers' lock, which is held until the transaction ends. (SQLite has one writer anyway.)"""
    if connection.vendor == "postgresql":
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def rollups_write(cursor: CursorWrapper, tallies: Mapping[Row, Tally], names: Mapping[Row, Names]) -> None:
    """Insert or overwrite rows."""
    counts = len(COUNTS)
    lines = [(*row, *names[row], *tally[:counts], *map(pack, tally[counts:])) for row, tally in tallies.items()]
    insert_lines(cursor, _TABLE, COLUMNS, lines, _REPLACE)


def rollups_delete(cursor: CursorWrapper, rows: Sequence[Row]) -> None:
    """Delete rows."""
    delete_lines(cursor, _TABLE, Row._fields, rows)


def decoded(lines: Iterable[Sequence[Any]]) -> Iterator[tuple[Row, Tally]]:
    """Decode the values of the columns READ."""
    width, counts = len(Row._fields), len(Row._fields) + len(COUNTS)
    return ((Row(*line[:width]), [*line[width:counts], *map(unpack, line[counts:])]) for line in lines)
