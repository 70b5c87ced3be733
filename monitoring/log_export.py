"""The request log as rows for a file: which of them, in order of time, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet

from accounts.connections import release_connections
from monitoring.export import Row
from monitoring.ids import CLOCK_SLACK, first_id
from monitoring.models import RequestRecord
from monitoring.rollups.selectors import EVERYTHING, Scope

#: Column of the file, and the field that it shows.
FIELDS = {
    "id": "id",
    "label": "label",
    "admitted_at": "admitted_at",
    "account": "account_name",
    "account_id": "account_id",
    "key": "key_name",
    "key_id": "key_id",
    "endpoint": "endpoint",
    "model": "model",
    "deployment": "deployment",
    "status": "status",
    "error_code": "error_code",
    "cache": "cache",
    "input_tokens": "input_tokens",
    "cached_tokens": "cached_tokens",
    "output_tokens": "output_tokens",
    "cost": "cost",
    "saved_cost": "saved_cost",
    "usage_source": "usage_source",
    "is_partial": "is_partial",
    "is_overrun": "is_overrun",
    "latency_ms": "latency_ms",
    "first_token_ms": "first_token_ms",
    "attempts": "attempts",
    "stages": "stages",
    "failures": "failures",
    "count": "count",
}
COLUMNS = tuple(FIELDS)
#: Rows that are read at a time: what SQLite's driver reads without letting others run, some milliseconds.
BATCH = 500


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records: those of a scope, and None leaves an end open; `end` is not included."""

    begin: datetime | None = None
    end: datetime | None = None
    scope: Scope = EVERYTHING

    def records(self) -> QuerySet[RequestRecord]:
        """Select the records, by what has an index first."""
        return between(RequestRecord.objects.filter(**self.scope.columns), self.begin, self.end)


def between(records: QuerySet[RequestRecord], begin: datetime | None, end: datetime | None) -> QuerySet[RequestRecord]:
    """Select by the time of admission, and by the ids around it: those are in order of time and have an index."""
    if begin is not None:
        records = records.filter(admitted_at__gte=begin)
    if end is not None:
        records = records.filter(admitted_at__lt=end)
    return ids_between(records, begin, end)


def ids_between(
    records: QuerySet[RequestRecord], begin: datetime | None, end: datetime | None
) -> QuerySet[RequestRecord]:
    """Select the records whose ids say that they may be of that time: some more than those that are."""
    if begin is not None:
        records = records.filter(pk__gte=first_id(begin, -CLOCK_SLACK))
    return records if end is None else records.filter(pk__lt=first_id(end, CLOCK_SLACK))


def record_batches(records: QuerySet[RequestRecord]) -> Iterator[Sequence[Row]]:
    """Read records in the order of their ids, oldest first, up to the newest that there is now.

    Each batch is a query of its own that begins where the one before ended. In between no connection is held, so that
    a slow reader keeps none from the requests, and others of this process get their turn.
    """
    newest = records.order_by("-pk").values_list("pk", flat=True).first()
    if newest is None:
        return
    rows = records.filter(pk__lte=newest).order_by("pk").values_list(*FIELDS.values())
    batch = list(rows[:BATCH])
    while batch:
        release_connections()
        time.sleep(0)
        yield batch
        batch = list(rows.filter(pk__gt=batch[-1][0])[:BATCH]) if len(batch) == BATCH else []
