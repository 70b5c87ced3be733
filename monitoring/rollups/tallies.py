"""What a record adds to the rollups: to which rows, and how much.

A tally is a list of integers in the order of MEASURES, histograms included: adding a record, taking away the one that
it replaces, and adding up tallies are one operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from accounts.refusals import nano
from monitoring.models import RequestRecord, Rollup
from monitoring.outcomes import TIMED, outcome_of
from monitoring.rollups.histograms import one
from monitoring.rollups.periods import HOUR, Period, hour_of, minute_of, start_of

#: The columns of a rollup that add up, and the histograms at their end.
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

#: The letters of a grain: whose requests (with totals apart, see rollups), and the period that is no Period.
TOTAL, PLATFORM, MINUTE = "t", "p", "i"
MINUTE_GRAINS = tuple(str(grain) for grain in Rollup.Grain if grain[1] == MINUTE)
#: For how long minutes are written, and when they are deleted. A record that is replaced in between is in both or none.
MINUTES_WRITTEN, MINUTES_KEPT = 3 * HOUR, 4 * HOUR

_CACHE_PLACES = {str(cache): COUNTS.index(column) for cache, column in CACHE_COLUMNS.items()}
_FIRST_CACHE, _AFTER_CACHE = COUNTS.index("hits"), COUNTS.index("replayed") + 1
_PERIODS = tuple(Period)

Tally = list[int]


class Row(NamedTuple):
    """Which row of the rollups: the columns of its primary key."""

    grain: str
    start: int
    account_id: int
    key_id: int
    endpoint: str
    model: str
    outcome: str


class Names(NamedTuple):
    """What the account and the key of a row are called; empty where the row stands for all."""

    account: str = ""
    key: str = ""


NOBODY = Names()


class Change(NamedTuple):
    """A record that was written, and the one that it replaced (None: there was none)."""

    old: RequestRecord | None
    new: RequestRecord


def tally_of(record: RequestRecord) -> Tally:
    """Count one record."""
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
    """Name the finest of the rows that a record belongs to: its key's in its hour."""
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
    """Name the row of a record's minute, by that of its key's in its hour."""
    return Row(PLATFORM + MINUTE, minute_of(record.admitted_at), 0, 0, hour.endpoint, hour.model, hour.outcome)


def total_row(row: Row) -> Row:
    """Name the total that a row of the platform belongs to."""
    return Row(TOTAL + row.grain[1], row.start, 0, 0, "", "", row.outcome)


def tallies_of(
    changes: Iterable[Change], minutes_since: datetime | None = None
) -> tuple[dict[Row, Tally], dict[Row, Names]]:
    """Add up what changes of the log change in the finest rows, and say what those rows' callers are called.

    Those are the keys' rows by the hour and, of records that were admitted since then, the platform's by the minute.
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
    """Add the tallies of the finest rows to all the rows above them as well, and name those."""
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
    """List a row of a key in an hour and the eight that contain it; totals apart, none contains one of a minute."""
    grain, hour, account, key, *rest = fine
    if grain[1] == MINUTE:
        yield fine, NOBODY
        return
    callers = (("k", account, key, names), ("a", account, 0, Names(names.account)), ("p", 0, 0, NOBODY))
    for period, start in zip(_PERIODS, _starts(hour), strict=True):
        for scope, account_id, key_id, named in callers:
            yield Row(scope + period, start, account_id, key_id, *rest), named


def add_tally(tallies: dict[Row, Tally], row: Row, tally: Tally) -> None:
    """Add a tally to that of a row."""
    known = tallies.get(row)
    tallies[row] = tally if known is None else [a + b for a, b in zip(known, tally, strict=True)]


@lru_cache(maxsize=1024)
def _starts(hour: int) -> tuple[int, ...]:
    return tuple(start_of(period, hour) for period in _PERIODS)
