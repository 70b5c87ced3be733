"""Usage as rows for a file: sums by time and by account, key, model or endpoint, a stretch of time after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from django.db.models import Max, Min

from accounts.connections import release_connections
from monitoring.export import Row
from monitoring.models import Rollup
from monitoring.rollups.calendar import Unit, buckets
from monitoring.rollups.figures import QUANTILES
from monitoring.rollups.periods import hour_of, hour_until, moment_of
from monitoring.rollups.selectors import Point, Scope, usage_series

#: Plain figures, as Figures.as_answer names them.
PLAIN = (
    "cache_hits",
    "cache_misses",
    "cache_hit_rate",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cost",
    "unpriced_requests",
    "saved_cost",
)
#: What the audit log calls what is exported.
KIND = "usage row"
TIMED = ("latency_ms", "first_token_ms")
ERRORS = ("invalid", "limited", "failed")


def usage_columns(by: str) -> tuple[str, ...]:
    """Name the columns of a file that is split by `by`."""
    times = (f"{name}_{quantile}" for name in TIMED for quantile in QUANTILES)
    return ("start", by, f"{by}_id", "requests", *(f"{name}_requests" for name in ERRORS), *PLAIN, *times)


def usage_batches(
    *, begin: datetime, end: datetime, unit: Unit, by: str, account_id: int | None = None
) -> Iterator[Sequence[Row]]:
    """Read the rollups of a span (UTC), a batch for each hour, day or month; where nothing was asked, there is none.

    In between no connection is held, so that a slow reader keeps none from the requests.
    """
    first, last = _kept(hour_of(begin), hour_until(end))
    for at, until, start in buckets(first, last, unit, UTC):
        points = usage_series(begin=moment_of(at), end=moment_of(until), scope=Scope(account_id=account_id), by=by)
        release_connections()
        time.sleep(0)  # others of this process get their turn, also in a long time in which nothing happened
        if points and start is not None:
            yield [_row(point, moment_of(start)) for point in points]


def _kept(first: int, end: int) -> tuple[int, int]:
    """Cut a span to the hours of which there are rollups: it may have been asked for from the year 1 on."""
    hours = Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_HOUR).aggregate(first=Min("start"), last=Max("start"))
    if hours["first"] is None:
        return first, first
    return max(first, hours["first"]), min(end, hours["last"] + 1)


def _row(point: Point, start: datetime) -> list[Any]:
    answer = point.figures.as_answer()
    times = [(answer[name] or {}).get(quantile) for name in TIMED for quantile in QUANTILES]
    return [
        start,
        point.group or "",
        point.group_id,
        answer["requests"],
        *(answer["errors"][name] for name in ERRORS),
        *(answer[name] for name in PLAIN),
        *times,
    ]
