"""The request log as rows for a file: which of them, in order of time, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet

from accounts.connections import release_connections
from accounts.keyset import Place, stretch
from monitoring.export import Row
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
ID, ADMITTED_AT = COLUMNS.index("id"), COLUMNS.index("admitted_at")
#: Rows that are read at a time: what SQLite's driver reads without letting others run, some milliseconds.
BATCH = 500


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records: those of a scope, and None leaves an end open; `end` is not included."""

    begin: datetime | None = None
    end: datetime | None = None
    scope: Scope = EVERYTHING

    def records(self) -> QuerySet[RequestRecord]:
        """Select the records by their time of admission."""
        records = RequestRecord.objects.filter(**self.scope.columns)
        if self.begin is not None:
            records = records.filter(admitted_at__gte=self.begin)
        return records if self.end is None else records.filter(admitted_at__lt=self.end)


def record_batches(records: QuerySet[RequestRecord]) -> Iterator[Sequence[Row]]:
    """Read records in order of admission (of one time, by their ids), oldest first, up to the newest that there is now.

    Each batch is a query of its own that begins where the one before ended. In between no connection is held, so that
    a slow reader keeps none from the requests, and others of this process get their turn.
    """
    newest = stretch(records, "admitted_at", is_newer=False).values_list("admitted_at", "pk").first()
    if newest is None:
        return
    after, last = None, Place(*newest)
    while batch := list(stretch(records, "admitted_at", after, last).values_list(*FIELDS.values())[:BATCH]):
        after = Place(batch[-1][ADMITTED_AT], batch[-1][ID])
        release_connections()
        time.sleep(0)
        yield batch
